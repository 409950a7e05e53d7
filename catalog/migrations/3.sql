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

-- How the error falls with the number of samples: arms random (and everything), and pareto, the least over initial sizes and keeps.
-- error = asymptote + amplitude · n^-exponent, or · exp(-exponent · n). fit_points holds what was fitted.
create table fits (
    fit text not null, model text not null, arms text not null, form text not null, exponent double not null,
    exponent_low double not null, exponent_high double not null, amplitude double not null, asymptote double not null,
    num_points integer not null, seeds integer not null, fingerprint text not null, run_id bigint not null
);
create table fit_points (fit text not null, num_samples double not null, error double not null, fitted double not null);
