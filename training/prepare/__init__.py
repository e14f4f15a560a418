"""`metier prepare`: writes the model's folder and the corpus, once."""
