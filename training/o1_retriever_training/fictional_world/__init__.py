"""A generated world to train and measure on: who thinks finds what two facts together tell.

People, companies, cities and countries have invented names and random relations. Some questions are answered
by one fact, some by two; part of the latter is never trained on, though the facts are. `settings`,
`relations`, `names` and `world` make the world, `questions` the questions and what is held out, `expert`
candidates for a committee, `tokenizer` and `base_model` the model to start from, and `writing` the files.

```python
from o1_retriever_training.fictional_world import WorldSettings, write_world

report = write_world("fictional-world", WorldSettings(people=50))
```
"""

from o1_retriever_training.fictional_world.settings import WorldSettings
from o1_retriever_training.fictional_world.writing import WorldReport, write_world

__all__ = ["WorldReport", "WorldSettings", "write_world"]
