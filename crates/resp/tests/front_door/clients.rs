//! Commands about the connection itself.

use crate::harness::{Client, Running, wait_until};

#[test]
fn commands_about_the_connection_answer_as_redis_does() {
    let running = Running::start();
    let mut client = running.connect();
    let cases = [
        ("CLIENT ID", ":1\r\n"),
        ("client getname", "$-1\r\n"),
        ("CLIENT SETNAME cart", "+OK\r\n"),
        ("CLIENT GETNAME", "$4\r\ncart\r\n"),
        (
            "CLIENT SETNAME \"a b\"",
            "-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
        ),
        ("CLIENT SETINFO LIB-NAME redis-rs", "+OK\r\n"),
        ("CLIENT SETINFO lib-ver 1.0", "+OK\r\n"),
        ("CLIENT SETINFO lib-age 1", "-ERR Unrecognized option 'lib-age'\r\n"),
        (
            "CLIENT SETINFO lib-name \"a b\"",
            "-ERR lib-name cannot contain spaces, newlines or special characters.\r\n",
        ),
        ("CLIENT NO-EVICT on", "+OK\r\n"),
        ("CLIENT NO-TOUCH maybe", "-ERR syntax error\r\n"),
        ("CLIENT REPLY maybe", "-ERR syntax error\r\n"),
        ("CLIENT KILL ID 0", "-ERR client-id should be greater than 0\r\n"),
        ("CLIENT KILL ID 99", ":0\r\n"),
        ("CLIENT KILL ID 1", ":0\r\n"),
        ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command\r\n"),
        ("CLIENT", "-ERR wrong number of arguments for 'client' command\r\n"),
        ("CLIENT FLY", "-ERR unknown subcommand 'FLY'. Try CLIENT HELP.\r\n"),
        ("AUTH default anything", "+OK\r\n"),
        ("AUTH someone secret", "-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        (
            "AUTH secret",
            "-ERR AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?\r\n",
        ),
        ("AUTH", "-ERR wrong number of arguments for 'auth' command\r\n"),
        ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
        ("HELLO two", "-ERR Protocol version is not an integer or out of range\r\n"),
        ("HELLO 3 SETNAME", "-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
        ("HELLO 3 AUTH someone secret", "-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        ("RESET now", "-ERR wrong number of arguments for 'reset' command\r\n"),
    ];
    for (command, reply) in cases {
        client.ask(command, reply);
    }
}

#[test]
fn hello_takes_a_name_and_reset_takes_all_back() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("HELLO 3 AUTH default x SETNAME shop\r\nCLIENT GETNAME\r\nSELECT 3\r\nMULTI\r\nRESET\r\n");
    client.send("CLIENT GETNAME\r\nEXEC\r\nQUIT\r\n");
    let replies = client.rest();
    assert!(replies.starts_with("%7\\r\\n"), "{replies}");
    let tail = r"*0\r\n$4\r\nshop\r\n+OK\r\n+OK\r\n+RESET\r\n$-1\r\n-ERR EXEC without MULTI\r\n+OK\r\n";
    assert!(replies.ends_with(tail), "{replies}");
}

#[test]
fn lists_name_every_connection() {
    let running = Running::start();
    let mut first = running.connect();
    first.ask("CLIENT SETNAME shop", "+OK\r\n");
    first.ask("SELECT 2", "+OK\r\n");
    let mut second = running.connect();
    second.ask("CLIENT SETINFO lib-name redis-py", "+OK\r\n");
    second.send("CLIENT LIST\r\nCLIENT INFO\r\nQUIT\r\n");
    let address = |client: &Client| client.0.local_addr().unwrap();
    let replies = second.rest();
    for part in [
        format!("id=1 addr={} laddr={} fd=", address(&first), running.address),
        "name=shop age=0 idle=0 flags=N db=2 ".to_owned(),
        format!("id=2 addr={}", address(&second)),
        "resp=2 lib-name=redis-py lib-ver=".to_owned(),
    ] {
        assert!(replies.contains(&part), "{part} in {replies}");
    }
    assert_eq!(replies.matches("id=2 ").count(), 2);
}

#[test]
fn a_killed_connection_closes() {
    let running = Running::start();
    let mut victim = running.connect();
    victim.ask("CLIENT ID", ":1\r\n");
    let mut killer = running.connect();
    killer.ask("CLIENT KILL ID 1", ":1\r\n");
    victim.expect_closed();
    killer.ask("CLIENT KILL ID 1", ":0\r\n");
    wait_until("it to be gone", || running.metrics.connections_open.get() == 1);
}

#[test]
fn replies_can_be_silenced() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("CLIENT REPLY SKIP\r\nECHO 1\r\nECHO 2\r\nCLIENT REPLY OFF\r\nECHO 3\r\nCLIENT REPLY SKIP\r\nECHO 4\r\n");
    client.send("CLIENT REPLY ON\r\nECHO 5\r\n");
    client.expect("$1\r\n2\r\n+OK\r\n$1\r\n5\r\n");
}

#[test]
fn a_refused_command_spoils_the_transaction() {
    let running = Running::start();
    let mut client = running.connect();
    client.ask("MULTI", "+OK\r\n");
    client.ask("SET a 1", "+QUEUED\r\n");
    client.ask("CLIENT ID", "-ERR Command not allowed inside a transaction\r\n");
    client.ask("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n");
}
