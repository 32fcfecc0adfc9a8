"""What is called: inferers, the function, sampler and aggregator, the evaluator, patched programs, commands."""
