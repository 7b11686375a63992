"""Systems that a checkpoint is compared with: lexical search, a sentence encoder, copied hashtags."""
