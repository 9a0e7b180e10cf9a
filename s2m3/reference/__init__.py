"""The whole models that splits are held equal to, with random weights, tokenizers and inputs for them."""
