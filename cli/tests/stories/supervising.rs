//! `skein server`: what it prints can be used as it is, two servers never share a folder, and it
//! leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use skein_cli::guard::{self, Signal};
use skein_cli::local::wait_for;

use super::world::{WAIT, World};

#[test]
fn the_welcome_says_how_to_join_and_each_command_in_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.args(["server", "--local", "--data-dir"]).arg(dir.path().join("s"));
    guard::die_with_parent(&mut command);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut welcome = String::new();
    let mut reader = BufReader::new(server.stdout.take().unwrap());
    while !welcome.contains("Stop:") {
        assert!(reader.read_line(&mut welcome).unwrap() > 0, "{welcome}");
    }
    assert!(welcome.contains("skein-agent enrol "), "{welcome}");
    assert!(welcome.contains("control/admin.token"), "{welcome}");
    let look = welcome.lines().find_map(|line| line.strip_prefix("Look around:  skein "));
    let look: Vec<&str> = look.unwrap_or_else(|| panic!("{welcome}")).split(' ').collect();
    let output = Command::new(env!("CARGO_BIN_EXE_skein")).args(look).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let token = dir.path().join("s/control/admin.token");
    let mode = std::os::unix::fs::PermissionsExt::mode(&token.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    guard::signal(server.id(), Signal::Terminate);
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_second_server_in_the_same_folder_is_refused() {
    let world = World::new();
    let output = Command::new(&world.binaries.skein)
        .args(["server", "--local", "--data-dir"])
        .arg(world.server.dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another server runs"));
}

#[test]
fn a_killed_supervisor_leaves_no_process_behind() {
    let world = World::new();
    let (control, data) = (world.server.control_pid().unwrap(), world.server.data_pid().unwrap());
    assert!(guard::signal(world.server.pid(), Signal::Kill));
    wait_for("both processes to end", WAIT, || {
        (!guard::lives(control) && !guard::lives(data)).then_some(())
    })
    .unwrap();
}
