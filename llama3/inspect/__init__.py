"""Look inside a model: what it attends to, what each layer would answer, how each token was chosen.

`inspect` sees; `page.page` draws it as one HTML file, `summary` as text. `svg` has the charts.
"""

from llama3.inspect.run import Inspection, inspect

__all__ = ["Inspection", "inspect"]
