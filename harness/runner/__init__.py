"""Run the steps in order: data, model, stages, evaluations, report; resume; arms."""
