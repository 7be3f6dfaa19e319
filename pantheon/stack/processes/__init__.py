"""Child processes of the stack: started, tied to the supervisor's life, kept running, ended."""
