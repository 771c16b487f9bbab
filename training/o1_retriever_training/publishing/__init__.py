"""Put a trained model on the Hugging Face Hub.

`contents` sorts a training's folder: what is no part of a model stays at home. `staging` makes the folder
that is sent, an adapter merged, with its `card`, and looks for secrets in it; `hub` sends it. `command` is
all of it as `o1-retriever publish`.
"""
