"""Leukemia abstracts to a fine-tuned, quantized and measured Llama: a teaching and research tool, no medical device."""
