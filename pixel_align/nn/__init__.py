"""Parts of models: no loss, no batch, no task in here."""
