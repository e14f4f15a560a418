"""From a document to token ids, and which of them are to be learnt."""
