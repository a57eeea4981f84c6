"""Reports as text: tables for people, JSON and YAML for machines, a diff for those who want to see every line.

Pure functions from data to strings; who prints them, and to what, is the command's business. Names come from Consul,
where every client that may register chooses them: all output passes through `layout.clean`, so that no control
character reaches a terminal.
"""
