"""CEL, the expression language of workflows: parsed and checked by Google's library, evaluated here.

    checker    the seam to cel-expr-python: text in, checked syntax tree or the library's complaint out; RE2's `matches`
    syntax     the syntax tree, read from the library's serialized form
    evaluator  the tree made into Python functions, once per expression
    control    conditions, logic, and the loops of macros
    operators  arithmetic, comparison, equality, indexing: what the language itself does
    functions  the standard functions, and the strings and optional extensions; conversions and mathematics beside it
    additions  this project's own functions
    times      timestamps, durations, their parts and their texts
    formatting `format` and the texts of values
    values     the types that JSON lacks, errors, and the way from a value to JSON
    meter      what one evaluation may cost, and who must not wait for it

Why not the library's own evaluator: it converts all data for each evaluation, copies the list for each element of a
`map`, gives up after 10,000 iterations, and may end its process while it converts a result. Semantics are those of the
library, and a test compares the two over generated expressions; where this package decides otherwise, docs/workflows.md
says so under "Expressions".

Invariants:

- An evaluation depends on its variables alone, and changes none of them. Results share parts with variables.
- It costs at most what `meter` allows: time linear in the values that it reads, except for nested loops, which have a
  budget; memory of a small multiple of the largest payload.
- Errors are CelError; the operators `&&`, `||` and the macros built of them absorb those as CEL says. A limit that is
  reached is LimitExceeded, which nothing absorbs.

`orchestrator_agent.workflows.expression` is the only caller.
"""
