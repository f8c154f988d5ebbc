"""What every result can do: a page in a notebook, a few words, a small dict, a table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import SsmdiagError

if TYPE_CHECKING:
    import pandas as pd


class Result:
    """What a computation came to."""

    # By name: reports know results, and results know nothing of reports.

    def summary(self) -> dict[str, Any]:
        """Return the answer, the counts, the longest memory and what was found, as a small dict for JSON.

        Names are those of the JSON reports; unknown is None, infinity the string "inf".
        """
        found: dict[str, Any] = import_module("ssmdiag.reports.summary").summary(self)
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table with one row for each layer, of a comparison of arms for each arm; unknown is None or NaN.

        Names are those of the JSON reports, a name within another joined to it: `half_life_max`. Raises SsmdiagError
        where pandas is not installed.
        """
        rows: list[dict[str, Any]] = import_module("ssmdiag.reports.summary").rows(self)
        try:
            import pandas as pd
        except ImportError as error:
            raise SsmdiagError(
                "a table needs pandas, which is not installed.", advice="pip install pandas; .summary() needs nothing."
            ) from error
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        words: str = import_module("ssmdiag.reports.summary").words_on(self)
        return f"<{type(self).__name__} {words}>"

    def _repr_html_(self) -> str:
        fragment: str = import_module("ssmdiag.reports.page").fragment(self)
        return fragment
