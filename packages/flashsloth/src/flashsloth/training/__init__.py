"""The paper's two stages."""
