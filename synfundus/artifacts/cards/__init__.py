"""Cards of models and of sample sets: what they are, for people, for Hugging Face and for other programs."""
