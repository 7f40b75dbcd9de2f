"""Run evaluation suites: generate answers, compute likelihoods, score."""
