"""Put a trained model on the Hugging Face Hub.

`contents` sorts a training's folder, `staging` makes the folder that is sent (`merging` an adapter first,
with a `card` of `figures` and `provenance`), `secret_scan` reads it, `hub` sends it. `command` is all of it
as `o1-retriever publish`.
"""
