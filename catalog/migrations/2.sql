-- Probes, and what they tell of how sure a score is.
create table probes (
    probe text not null, embedding text not null, models text[] not null, num_models integer not null, epochs integer not null,
    fraction double not null, seed bigint not null, test text[] not null, num_classes integer not null,
    num_samples bigint not null, num_test bigint not null, folder text not null, fingerprint text not null, run_id bigint not null
);
create table probe_models (
    probe text not null, part text not null, model text not null, seed bigint not null,
    accuracy double, left_out_accuracy double, test_accuracy double, seconds double not null
);
alter table scorings add column reliability double;
alter table scores add column standard_error double;
