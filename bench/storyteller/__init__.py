"""What the built-in storyteller was trained with: a grammar of stories, and the training of the model."""
