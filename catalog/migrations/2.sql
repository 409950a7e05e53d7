-- Scores have standard errors, and scorings a reliability.
alter table scorings add column reliability double;
alter table scores add column standard_error double;
