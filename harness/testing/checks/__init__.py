"""The contract checks of each type of component: functions that fail with what is wrong."""
