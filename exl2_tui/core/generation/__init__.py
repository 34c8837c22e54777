"""From logits to text: sampling, stop conditions and the decode loop. Knows nothing of templates or files."""
