"""The command lines of the stages that load torch; torch is imported when one runs, not before."""
