"""How good are the answers? Labelled recordings -> measures beside simple baselines: `spanchain evaluate`, `tune`."""
