"""A generated world to train and measure on: who thinks finds what two facts together tell.

People, companies, cities and countries have invented names and random relations. Some questions are answered
by one fact, some by two; part of the latter is never trained on, though the facts are. `world` makes the
world, `questions` the questions, what of them is held out and candidates for a committee, `writing` the files
and the model to start from, `measuring` searches with a trained model, and `run` makes the figures of `page`.

```python
from benchmarks.fictional_world import WorldSettings, write_world

report = write_world("fictional-world", WorldSettings(people=50))
```
"""

from benchmarks.fictional_world.world import WorldSettings
from benchmarks.fictional_world.writing import WorldReport, write_world

__all__ = ["WorldReport", "WorldSettings", "write_world"]
