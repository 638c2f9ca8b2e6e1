"""A trained student as LoRA files or one merged model, with a model card."""
