"""All that is known of the insides of kafka-python, and nothing else in the package touches them.

`tests/unit/test_client_wall.py` holds every private name and patched function to objects of the client itself, so that
a release that renames one fails there; other tests guard what the mends promise. Seen in 2.3.3, unless a row says more.

| bug or gap | what we do | test that guards it | drop when |
|---|---|---|---|
| heartbeats, time-outs and backoffs go by the wall clock: set back by an hour, none comes for an hour | \
`clock`: the steady clock stands in for the module `time`, except for the timestamps of records | \
`test_clock::test_modules_that_measure_get_the_steady_clock` | the client measures with `time.monotonic` |
| botocore is imported wherever it is installed, for a login that we make ourselves: a seventh of a start | \
`importing`: hides it from the client's import | \
`test_client_wall::test_client_is_imported_without_botocore` | the client imports it for that login alone |
| an error while decoding comes out of `poll` without its partition, again and again | \
`fetching`: UndecodableError names partition, offset and the next batch; the dead data are dropped | \
`test_bad_input::test_what_stands_before_is_read_and_then_the_place_is_named` | `poll` names the place, and goes on |
| offsets that repeat, fall or lie beyond their batch are believed; attributes of a record are read as a long number | \
`checked_batch`: a batch is looked through before the first of its records is handed on | \
`test_bad_input::test_nothing_is_handed_on_of_a_batch_whose_offsets_lie` | the client holds them against the batch |
| two objects and a dozen properties for each fetched record, a call for each number of a written one | \
`checked_batch`, `open_records`: our own codec, a third fewer Python calls a record | \
`test_record_codec::test_we_read_what_the_client_writes` | the client's codec takes half the time |
| a batch may unpack to gigabytes | `fetching`: decoders that stop at 64 MiB or twenty times the size | \
`test_bad_input::test_client_unpacks_as_much_as_it_is_let_and_no_more` | the client has such a limit |
| a poll returns so many records, whatever they unpack to | `fetching`: it ends at 4 MiB and one value more | \
`test_bad_input::test_poll_ends_where_it_has_returned_enough` | `poll` takes a limit in bytes |
| `send` takes a future and a dozen checks a record: 0.64 of a plain loop's throughput | \
`batching`: records are appended to the client's open batch | \
`test_producer::test_each_record_of_a_batch_hears_where_it_landed` | `send` takes a callback and half the time |
| the newer batches of a partition pass one that fails for good | `batching`: it takes them back | \
`test_producer::test_what_waits_behind_a_failed_batch_is_taken_back_until_it_may_go` | they fail with it |
| one codec for all batches, zstd at its default level | `batching`: a tighter batch of its own for one record | \
`test_producer::test_record_that_must_be_small_has_a_batch_of_its_own_packed_by_zstd` | `send` takes codec and level |
| `partitions_for` waits for a missing topic, all of `max_block_ms` | `sender`: knows_topic asks once | \
`test_producer::test_topic_that_the_client_does_not_know_is_asked_for_once` | it can be asked without waiting |
| `linger_ms` holds back a record that comes alone | `batching`: BatchSpacing, by the batch's `last_attempt` | \
`test_producer::test_batch_that_comes_alone_leaves_at_once_and_others_together` | it lingers for the last one only |
| `_failed_produce` passes an error where `_complete_batch` expects its class: the futures never resolve | \
`sender`: passes the class | `test_producer::test_request_that_is_not_tried_again_fails_its_records` | it does so |
| one refused record fails its neighbours in the batch with a bare KafkaError, several as InvalidRecordError | \
`sender`: all fail with the error of the batch | \
`test_producer::test_each_record_of_a_refused_batch_hears_the_error_of_the_batch_in_its_own_words` | they do so |
| the sender spins through the last millisecond of each wait | `sender`: waits are rounded up | \
`test_producer::test_sender_sleeps_whole_milliseconds` | `poll` rounds up |
| with acks=0 a request stays in memory until the next one | `sender`: its connection is marked as having data | \
`test_producer::test_request_without_an_answer_is_written_at_once` | `send` marks it whether or not it is done |
| a refused idempotent producer tells only its records | `sender`: refusal_of_idempotence, at the start | \
`test_clients::test_without_the_right_to_write_idempotently_the_producer_is_refused_at_once` | the constructor raises |
| a batch above the topic's limit fails whole, and newer ones pass it | `batching`: BatchWriter.limit | \
`test_client_faults::test_batches_within_the_topics_limit_are_taken_whole` | it splits such a batch |
| `close` flushes, and raises before it stops anything; the sender's end trips over batches on the wire | \
`sender`: force_stop | `test_producer::test_stopped_producer_frees_its_thread` | `close(0)` ends the thread |
| `wakeup` looks at its flag outside of its lock: hundreds of threads write a byte each, the socket is full, and the \
writer waits for 3 s holding the lock that the network needs | `network`: looks again under the lock | \
`test_network::test_a_thousand_threads_that_wake_the_network_at_once_write_one_byte` | it looks under its lock |
| a login goes on without the lock, and another thread that polls takes its answer or waits for one until the \
request time-out, holding the lock | `network`: its answers are completed under the lock | \
`test_network::test_a_login_goes_on_under_the_lock` | it does so by itself |
| an error of TLS comes out of `poll`, and the connection stays as it was until it times out | \
`network`: closes what was being connected, or else all | \
`test_network::test_connection_that_fails_with_an_error_of_tls_is_closed` | the client closes it |
| the thread of heartbeats ends by such an error, and none takes its place while the group is stable | \
`network`: raises nothing in it | `test_network::test_heartbeats_go_on_behind_an_error_of_the_network` | it is |
| the configured servers are forgotten with the first metadata: a cluster under other addresses is never found | \
`network`: asks them, too, when no broker has answered for 5 s; one that falls silent without a word takes the \
client's request time-out first | \
`test_client_faults::test_cluster_that_comes_back_under_other_addresses_is_found_at_the_configured_ones` | \
the client bootstraps again (KIP-899) |
| a question what is committed that timed out is kept, and its late answer taken for that to the next one | \
`group`: the client forgets it | \
`test_client_faults::test_late_answer_about_what_is_committed_is_not_taken_for_a_newer_question` | it is not kept |
| `poll` raises behind records that it took, and the positions have passed them | `group`: Polling returns them; \
after any other error the engine seeks | \
`test_consumer::test_records_that_were_taken_are_returned_although_the_network_fails_behind_them` | it does not |
| a partition without a position keeps `poll` from the others | `group`: the client looks for no positions | \
`test_consumer::test_partition_without_a_position_does_not_hold_up_the_others` | it fetches the others meanwhile |
| `poll` spins through the last millisecond | `group`: one round of it at a time | \
`test_consumer::test_rebalance_that_a_poll_left_pending_is_gone_on_with` | it waits to the end |
| a rebalance that a poll left pending is forgotten, and the assignment with it | `group`: asks to join again | \
`test_consumer::test_rebalance_that_a_poll_left_pending_is_gone_on_with` | `need_rejoin` minds a pending join |
| generation and session have no public names | `group`: generation, Session | \
`test_consumer::test_answered_heartbeat_renews_the_session` | they have |
| `commit` sends again until its time is up, also to a topic that was created anew | `group`: commit_once | \
`test_topics::test_topic_deleted_under_commits_again_and_again_is_never_begun_in_the_middle` | \
one try can be asked for |
| `position` asks the cluster where there is none; `beginning_offsets` has no time limit | `group` | \
`test_client_wall::test_position_is_read_without_asking` | public calls take a time limit |
| high watermarks of paused partitions are not known | `group`: request_watermarks, answered in later polls | \
`test_client_wall::test_consumer_has_what_we_touch` | they can be asked for without waiting |
| `end_offsets` and its like wait for partitions without a leader, and raise for all when their time is up | \
`group`: offsets_at, one question | `test_client_wall::test_consumer_has_what_we_touch` | they return what they know |
| an administration client's limits are per request, some of them fixed; there may be no node to ask | \
`administration`: a deadline around each wait; waits for a node | \
`test_clients::test_a_frozen_broker_holds_an_attempt_no_longer_than_its_time` | calls take a time limit |
| `describe_topics` fails on a topic that we may not see | `administration`: asks by itself | \
`test_clients::test_the_right_to_describe_is_enough_when_nothing_is_to_be_created` | it tells errors by topic |
| what is wrong with a group comes out as a ValueError, for its rights are not told then | `administration`: looks at \
the error first | `test_client_wall::test_error_of_a_groups_description_is_raised_as_it_is` | it looks there first |
| a group of another protocol type, or one damaged member, makes its description end in a TypeError or ValueError | \
`administration`: hands on what the coordinator tells, and reads subscriptions one by one | \
`test_client_wall::test_group_of_another_type_is_described_as_it_is`, \
`test_client_wall::test_subscription_that_cannot_be_read_is_none` | it decodes consumers only, each by itself |
"""
