"""Child processes that are kept up: started again when they ended, ended when they stopped answering."""
