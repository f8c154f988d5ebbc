"""The law a kernel decays by: exponential, polynomial, truncated or flat, or undetermined.

Where no single law holds, the modes themselves are asked (`tail`), and where that fails too, a few exponentials
describe the energy that remains (`energy_curve`). Reports have it so:

| text | JSON | what it says |
|---|---|---|
| exp. tail | `tail`, `rate` | from a lag on, the modes of one rate (within 10 %) decide |
| exp. tails | `tail`, `rates` | two or three rates decide: a sum of exponentials |
| exp. band | `tail`, `rates` | a band: to 1.6 times the slowest rate in a channel, 16 times in a layer; its ends |
| near 2 exp. | `energy_curve` | the exponentials within 1.5 dB of the energy; they need not be the rates of any mode |
| undet., truncated | `law` | the law that comes nearest, not near enough to be named |

`tail` holds `from`, `to`, `law`, `rate` in nats per step, and `energy_share`, of the context's energy left at `from`;
it is null with a `tail_reason`. `slowest_rate` is another number: the mean rate, within 10 %, of the slowest modes that
hold a millionth of the energy, whether they decide or not. `energy_curve` has `terms`, each a `rate` and its `share` of
what is left at `from`, nowhere up to `to` further off than `within_db`; a rate above 2.3, gone within a step, is given
as 2.3; null where fewer than 8 channels that oscillate leave it unsure. `lags` hold half, nine tenths and 99 % of the
energy, exact to the step; `heaviness` is their t₉₉/t₅₀ over an exponential's. What is left below a millionth of the
energy, or drowns in float32, is not spoken of.
"""
