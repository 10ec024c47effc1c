"""From files to numbers: readers, tokenizer, vocabulary, batches."""
