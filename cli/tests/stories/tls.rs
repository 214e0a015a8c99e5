//! The API over TLS: an operator elsewhere trusts the server's authority and nobody else, every
//! command works, and whatever is wrong is said with its remedy. No token goes out in the clear.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use skein_cli::guard;
use skein_cli::local::{AgentOptions, wait_for};

use super::world::{Random, WAIT, World};

/// What an operator on another machine has: an address, a token and maybe an authority.
struct Operator<'a> {
    world: &'a World,
    token: String,
}

impl<'a> Operator<'a> {
    fn of(world: &'a World) -> Self {
        let token = world.server.dir().join("control/admin.token");
        Self { world, token: std::fs::read_to_string(token).unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.world.binaries.skein);
        for variable in skein_cli::connection::VARIABLES {
            command.env_remove(variable);
        }
        command.env("SKEIN_TOKEN", self.token.trim()).args(arguments).stdin(Stdio::null());
        command
    }

    fn skein(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it; it must end with this code, and answers with both outputs.
    fn ends(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.skein(arguments);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(output.status.code(), Some(code), "skein {arguments:?}\n{text}");
        text
    }
}

fn world(more: &str) -> World {
    World::with_config(&format!("restart_pause_ms_max = 300\n[control]\napi_tls = true\n{more}"))
}

/// `https://127.0.0.1:PORT` of a server, by the address that it bound.
fn url(world: &World, host: &str) -> String {
    let ports = skein_cli::connection::Ports::read(world.server.dir(), "control").unwrap();
    let api = ports.api.unwrap();
    format!("https://{host}:{}", api.rsplit_once(':').unwrap().1)
}

fn authority(world: &World) -> String {
    world.server.dir().join("control/ca.crt").to_str().unwrap().to_owned()
}

#[test]
fn every_command_works_over_https_from_elsewhere() {
    let world = world("");
    let agent = world.agent("one", AgentOptions::default());
    let stored = world.server.tagged_stream("logs", &[1001]).unwrap();
    let operator = Operator::of(&world);
    let (url, ca) = (url(&world, "127.0.0.1"), authority(&world));
    let with = |arguments: &[&'static str]| [&["--api", &url, "--ca", &ca], arguments].concat();
    assert!(operator.ends(0, &with(&["hosts"])).contains(agent.id()));
    assert!(operator.ends(0, &with(&["run", "--on", "all", "--", "echo hello"])).contains("hello"));

    // Large enough for thousands of TLS records in both directions of every buffer.
    let mut random = Random(7);
    let content: Vec<u8> = (0..24_000_000).map(|_| random.below(256) as u8).collect();
    let file = world.dir.path().join("large.bin");
    std::fs::write(&file, &content).unwrap();
    let folder = world.dir.path().join("to");
    let to = format!("all:{}", folder.display());
    let push = ["--api", &url, "--ca", &ca, "push", file.to_str().unwrap(), "--mkdir", "--to", &to];
    operator.ends(0, &push);
    assert!(std::fs::read(folder.join("large.bin")).unwrap() == content, "the file is whole");
    let many = operator.ends(0, &with(&["run", "--on", "all", "--", "seq 1 300000"]));
    assert!(many.lines().any(|line| line.trim() == "300000"), "a long output is whole");

    let mut tap = operator.command(&with(&["tap", "1001", "--count", "20"]));
    guard::die_with_parent(&mut tap);
    let mut tap = tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut emitted = 0;
    wait_for("the tap to have seen 20 records", WAIT, || {
        let mut emit = agent.emit(1001);
        let status = emit.args(["--generate", "50"]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
        emitted += 50;
        tap.try_wait().unwrap()
    })
    .unwrap();
    let lines = BufReader::new(tap.stdout.take().unwrap()).lines().count();
    assert!(lines >= 20, "{lines} lines of the tap");
    wait_for("the records in the sink", WAIT, || {
        let recount = skein_cli::recount::Recount::of(&stored).ok()?;
        (recount.unique() == emitted).then_some(())
    })
    .unwrap();
}

#[test]
fn the_servers_folder_gives_address_authority_and_token() {
    let world = world("");
    assert!(world.server.client().api().starts_with("https://127.0.0.1:"));
    world.skein_ends(0, &["status"]);
    let operator = Operator::of(&world);
    let (url, dir) = (url(&world, "localhost"), world.server.dir().to_str().unwrap());
    operator.ends(0, &["--api", &url, "--data-dir", dir, "status"]);
    let mut by_variable = operator.command(&["--api", &url, "status"]);
    by_variable.env("SKEIN_CA", authority(&world));
    assert!(by_variable.output().unwrap().status.success());
}

#[test]
fn a_server_of_another_authority_is_refused_and_the_remedy_is_named() {
    let (world, other) = (world(""), World::new());
    let operator = Operator::of(&world);
    let url = url(&world, "127.0.0.1");
    for arguments in [
        vec!["--api", url.as_str(), "--ca", &authority(&other), "hosts"],
        // The system knows no Skein server.
        vec!["--api", url.as_str(), "hosts"],
    ] {
        let text = operator.ends(3, &arguments);
        assert!(text.contains("authority") && text.contains("--ca"), "{text}");
        assert!(text.contains("ca.crt"), "{text}");
    }
    let missing = operator.ends(6, &["--api", &url, "--ca", "/nonexistent.pem", "hosts"]);
    assert!(missing.contains("/nonexistent.pem"), "{missing}");
    let token = world.server.dir().join("control/admin.token");
    let empty = operator.ends(6, &["--api", &url, "--ca", token.to_str().unwrap(), "hosts"]);
    assert!(empty.contains("holds no certificate"), "{empty}");
}

#[test]
fn a_name_that_the_certificate_lacks_is_refused_until_it_is_configured() {
    for (more, code) in [("", 3), ("api_names = [\"127.0.0.2\"]\n", 0)] {
        let world = world(more);
        let operator = Operator::of(&world);
        let local = url(&world, "127.0.0.1");
        let port = local.rsplit_once(':').unwrap().1.parse().unwrap();
        let forwarded = forward("127.0.0.2", port);
        let api = format!("https://127.0.0.2:{forwarded}");
        let text = operator.ends(code, &["--api", &api, "--ca", &authority(&world), "hosts"]);
        assert_eq!(text.contains("control.api_names"), code == 3, "{text}");
    }
}

/// A tunnel that ends with the test: another address that leads to a port of this machine.
fn forward(host: &str, port: u16) -> u16 {
    let listener = std::net::TcpListener::bind((host, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let pairs =
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
            for (mut from, mut to) in pairs {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    address.port()
}

#[test]
fn plain_http_and_tls_never_meet_without_a_word() {
    let (secure, plain) = (world(""), World::new());
    let operator = Operator::of(&secure);
    let https = url(&secure, "127.0.0.1");
    let text = operator.ends(3, &["--api", &https.replace("https", "http"), "hosts"]);
    assert!(text.contains("use https://"), "{text}");
    let http = plain.server.client().api().replace("http:", "https:");
    let text = operator.ends(3, &["--api", &http, "hosts"]);
    assert!(text.contains("does not speak TLS"), "{text}");

    // Any other tool is told so as well.
    let address = https.trim_start_matches("https://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 400") && reply.contains("speaks https"), "{reply}");
}

#[test]
fn neither_side_shows_the_token_to_the_network() {
    let world = World::new();
    let operator = Operator::of(&world);
    let text = operator.ends(2, &["--api", "http://192.0.2.1:28863", "hosts"]);
    assert!(text.contains("https://192.0.2.1:28863") && text.contains("ssh -L"), "{text}");
    let dir = world.dir.path().join("open");
    let dir = dir.to_str().unwrap();
    let server = ["server", "--local", "--api-listen", "0.0.0.0:0", "--data-dir", dir];
    let text = operator.ends(2, &server);
    assert!(text.contains("without TLS") && text.contains("api_tls"), "{text}");
}

#[test]
fn an_operators_own_certificate_is_shown_to_who_asks_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    // Another server's authority plays the company's: its certificate names 127.0.0.1.
    let company = World::with_config("[control]\napi_tls = true\n");
    for file in ["api.crt", "api.key"] {
        let from = company.server.dir().join("control").join(file);
        std::fs::copy(from, folder.path().join(file)).unwrap();
    }
    let path = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
    let world = world(&format!(
        "api_certificate = \"{}\"\napi_key = \"{}\"\n",
        path("api.crt"),
        path("api.key")
    ));
    let operator = Operator::of(&world);
    let url = url(&world, "127.0.0.1");
    operator.ends(0, &["--api", &url, "--ca", &authority(&company), "hosts"]);
    operator.ends(3, &["--api", &url, "--ca", &authority(&world), "hosts"]);
}

#[test]
fn a_tap_whose_server_dies_says_so_in_plain_words() {
    let world = world("");
    world.server.tagged_stream("logs", &[1001]).unwrap();
    let agent = world.agent("one", AgentOptions::default());
    let operator = Operator::of(&world);
    let (url, ca) = (url(&world, "127.0.0.1"), authority(&world));
    let mut tap = operator.command(&["--api", &url, "--ca", &ca, "tap", "1001"]);
    guard::die_with_parent(&mut tap);
    let mut tap = tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(tap.stdout.take().unwrap()).lines();
    let (sender, seen) = std::sync::mpsc::channel();
    // Reads to the end: a tap that nobody reads would end by itself.
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    wait_for("the tap's first record", WAIT, || {
        let status = agent.emit(1001).args(["--generate", "1"]).stdout(Stdio::null()).status();
        assert!(status.unwrap().success());
        seen.try_recv().ok()
    })
    .unwrap();
    guard::signal(world.server.control_pid().unwrap(), guard::Signal::Kill);
    let output = tap.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("no answer from") && !text.contains("docs.rs"), "{text}");
}
