"""Whisper in torch with one head width per layer and twin kind, and where its weights come from."""
