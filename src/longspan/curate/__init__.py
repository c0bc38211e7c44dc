"""Better training data: consistency filtering, hard negatives, long pairs and near-duplicates."""
