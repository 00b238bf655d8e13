"""How far back do shipped networks listen? Networks of real packages on their own input (`make atlas`)."""
