//! rsyslog and syslog-ng as they are in Debian, unpacked beside the system by `perf/peers.sh`: each
//! as a sender that follows a file and a receiver that writes one, over TLS on loopback. Both have
//! their larger queues and batches switched on, so that they show what they can.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::process::Cpu;

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// rsyslog with its GnuTLS driver.
    Rsyslog,
    /// syslog-ng.
    SyslogNg,
}

/// A sender and a receiver that run; they end with this value.
pub struct Peers {
    sender: Peer,
    receiver: Peer,
    /// When the sender was started.
    pub started: Instant,
    /// What the receiver writes.
    pub out: PathBuf,
}

impl Peers {
    /// Starts both on `source`; `work` is their folder, `root` where the packages are.
    pub fn start(kind: Kind, root: &Path, source: &Path, work: &Path) -> anyhow::Result<Self> {
        certificate(work)?;
        let root = root.canonicalize().context("run perf/peers.sh first")?;
        let port = free_port()?;
        let [receiver, sender] = match kind {
            Kind::Rsyslog => rsyslog(&root, source, work, port)?,
            Kind::SyslogNg => syslog_ng(&root, source, work, port)?,
        };
        let mut receiver = Peer::start(receiver, &work.join("receiver.out"))?;
        receiver.listens(port)?;
        let started = Instant::now();
        let sender = Peer::start(sender, &work.join("sender.out"))?;
        Ok(Self { sender, receiver, started, out: work.join("out.log") })
    }

    /// CPU so far of sender and receiver, in microseconds; an error when one has ended.
    pub fn cpu_us(&self) -> anyhow::Result<[u64; 2]> {
        let of = |peer: &Peer| anyhow::Ok(Cpu::of(peer.0.id())?.total_us());
        Ok([of(&self.sender)?, of(&self.receiver)?])
    }
}

/// Its version, as it says it.
pub fn version(kind: Kind, root: &Path) -> anyhow::Result<String> {
    let root = root.canonicalize().context("run perf/peers.sh first")?;
    let (name, flag) = match kind {
        Kind::Rsyslog => ("rsyslogd", "-v"),
        Kind::SyslogNg => ("syslog-ng", "--version"),
    };
    let output = program(&root, name).arg(flag).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    let first = first.split(" (aka").next().unwrap_or_default();
    Ok(first.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn rsyslog(root: &Path, source: &Path, work: &Path, port: u16) -> anyhow::Result<[Command; 2]> {
    let dir = work.display();
    let modules = root.join("usr/lib/x86_64-linux-gnu/rsyslog");
    let receiver = format!(
        "global(workDirectory=\"{dir}\" defaultNetstreamDriver=\"gtls\" \
             defaultNetstreamDriverCAFile=\"{dir}/cert.pem\" \
             defaultNetstreamDriverCertFile=\"{dir}/cert.pem\" \
             defaultNetstreamDriverKeyFile=\"{dir}/key.pem\" maxMessageSize=\"64k\")\n\
             module(load=\"imtcp\" StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" \
             StreamDriver.AuthMode=\"anon\")\n\
             template(name=\"raw\" type=\"string\" string=\"%msg%\\n\")\n\
             input(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\" ruleset=\"out\")\n\
             ruleset(name=\"out\" queue.type=\"linkedList\" queue.size=\"200000\" \
             queue.dequeueBatchSize=\"2048\"){{ \
             action(type=\"omfile\" file=\"{dir}/out.log\" template=\"raw\" ioBufferSize=\"256k\") }}\n"
    );
    let sender = format!(
        "global(workDirectory=\"{dir}/state\" defaultNetstreamDriver=\"gtls\" \
             defaultNetstreamDriverCAFile=\"{dir}/cert.pem\" maxMessageSize=\"64k\")\n\
             module(load=\"imfile\" mode=\"inotify\")\n\
             input(type=\"imfile\" file=\"{}\" tag=\"t\" ruleset=\"fwd\")\n\
             ruleset(name=\"fwd\" queue.type=\"linkedList\" queue.size=\"200000\" \
             queue.dequeueBatchSize=\"2048\"){{ \
             action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\" \
             StreamDriver=\"gtls\" StreamDriverMode=\"1\" StreamDriverAuthMode=\"anon\" \
             template=\"RSYSLOG_SyslogProtocol23Format\") }}\n",
        source.display()
    );
    std::fs::create_dir(work.join("state"))?;
    let command = |name: &str, config: &str| -> anyhow::Result<Command> {
        let file = work.join(format!("{name}.conf"));
        std::fs::write(&file, config)?;
        let mut command = program(root, "rsyslogd");
        command.arg("-n").arg("-f").arg(&file).arg("-M").arg(&modules);
        command.arg("-i").arg(work.join(format!("{name}.pid")));
        Ok(command)
    };
    Ok([command("receiver", &receiver)?, command("sender", &sender)?])
}

fn syslog_ng(root: &Path, source: &Path, work: &Path, port: u16) -> anyhow::Result<[Command; 2]> {
    let dir = work.display();
    let head = "@version: 3.38\n@module affile\n@module afsocket\n@module syslogformat\n\
                    options { log-msg-size(65536); flush-lines(1000); stats-freq(0); };\n";
    let receiver = format!(
        "{head}source s {{ network(ip(\"127.0.0.1\") port({port}) transport(\"tls\") \
             flags(no-parse) log-iw-size(100000) tls(key-file(\"{dir}/key.pem\") \
             cert-file(\"{dir}/cert.pem\") peer-verify(optional-untrusted))); }};\n\
             destination d {{ file(\"{dir}/out.log\" template(\"$MSG\\n\")); }};\n\
             log {{ source(s); destination(d); flags(flow-control); }};\n"
    );
    let sender = format!(
        "{head}source s {{ file(\"{}\" flags(no-parse) follow-freq(1) log-iw-size(100000)); }};\n\
             destination d {{ network(\"127.0.0.1\" port({port}) transport(\"tls\") \
             template(\"$MSG\\n\") log-fifo-size(200000) \
             tls(peer-verify(no) ca-file(\"{dir}/cert.pem\"))); }};\n\
             log {{ source(s); destination(d); flags(flow-control); }};\n",
        source.display()
    );
    let modules = root.join("usr/lib/syslog-ng/3.38");
    let command = |name: &str, config: &str| -> anyhow::Result<Command> {
        let own = |kind: &str| work.join(format!("{name}.{kind}"));
        std::fs::write(own("conf"), config)?;
        let mut command = program(root, "syslog-ng");
        command.arg("-F").arg("--no-caps").arg("-f").arg(own("conf"));
        command.arg("-p").arg(own("pid")).arg("-c").arg(own("ctl"));
        command.arg("-R").arg(own("persist"));
        command.arg(format!("--module-path={}", modules.display()));
        Ok(command)
    };
    Ok([command("receiver", &receiver)?, command("sender", &sender)?])
}

/// A program of the unpacked packages, with their libraries.
fn program(root: &Path, name: &str) -> Command {
    let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib/syslog-ng", "lib/x86_64-linux-gnu"]
        .map(|below| root.join(below).display().to_string());
    let mut command = Command::new(root.join("usr/sbin").join(name));
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command
}

/// A peer's process; ends with this value.
struct Peer(Child);

impl Peer {
    fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log)?;
        let quiet = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(quiet.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Waits until something listens on its port.
    fn listens(&mut self, port: u16) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(self.0.try_wait()?.is_none(), "the receiver ended at once");
            ensure!(Instant::now() < deadline, "the receiver does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn certificate(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    std::fs::write(folder.join("cert.pem"), made.cert.pem())?;
    Ok(std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?)
}
