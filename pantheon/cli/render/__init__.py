"""What commands print: listings, units, the files of results, and the streams they go to.

    output         the two streams: results to stdout, everything else to stderr
    listing        rows in columns that fit a terminal, and go whole into a pipe
    units          durations, times and sizes as people read them
    result_files   files inside a result (`filename` and `content_base64`), written to a folder

Invariants: with `--json`, stdout holds one JSON document and nothing else; colour and cursor movements go to a terminal
only; in a pipe nothing is cut. A reader that closes the pipe early ends the command without a traceback. A file name of
a result never leaves the folder that was named for it.

States: none; the streams of the process are resolved when something is printed, so that tests may replace them.

Called by `pantheon.cli.commands` and `pantheon.cli.progress`. No network I/O: what is printed has been fetched before.
It imports `pantheon.runtime` and exit codes, and nothing else of the command line.
"""
