"""The field's caption scores, equal to pycocoevalcap's."""
