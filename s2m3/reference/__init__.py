"""The whole models that splits must equal, with random weights, tokenizers and inputs for both."""
