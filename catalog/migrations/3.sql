-- Validations; and selections that skip the hardest.
alter table selections add column skip_hardest double default 0;
-- Small training runs that compare a selection (arm pruned) with the whole corpus (full) and with as many samples drawn at random
-- under the same balance (random; `selection` names the one it is compared with). Seeds pair them.
create table validations (
    validation text not null, embedding text not null, model text not null, epochs integer not null, schedule text not null,
    seeds integer not null, seed bigint not null, test text[] not null, num_test bigint not null, num_samples bigint not null,
    num_trainings integer not null, fingerprint text not null, run_id bigint not null
);
create table trainings (
    validation text not null, arm text not null, selection text, keep double not null, seed bigint not null,
    num_samples bigint not null, epochs integer not null, accuracy double not null, loss double not null, seconds double not null
);
create table class_accuracies (
    validation text not null, arm text not null, selection text, seed bigint not null, label text not null,
    num_test bigint not null, accuracy double not null
);
