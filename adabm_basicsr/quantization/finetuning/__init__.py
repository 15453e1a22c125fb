"""Step 3: fine-tuning against the full-precision network, the teacher."""
