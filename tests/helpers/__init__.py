"""What tests share: random models and files, references to compare with, and how calls end."""
