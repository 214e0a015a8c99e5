//! Realistic log lines from a seed: several services, formats, hosts, users, paths, latencies,
//! user agents and flattened stack traces, about 220 bytes a line. The demo, the benchmarks and
//! the tests draw from here, so that rates and compression ratios are measured on text that looks
//! like a fleet's and not on one repeated line.
//!
//! Invariants: the same seed gives the same bytes on every machine; no line repeats (time and ids
//! move on); zstd level 1 packs 256 KiB of it 4 to 5 times, as it does with real logs (a test
//! holds both). Fragments are built once, a line is a few copies and numbers: a core makes some
//! millions of lines per second, so that the generator is never what a benchmark measures.

/// Fragments per pool. Small enough to stay in the first-level cache, large enough that the
/// compressor's window sees each many times, as it does in real logs.
const HOSTS: usize = 24;
const USERS: usize = 200;
const PATHS: usize = 160;

/// Milliseconds of 2026-01-01T00:00:00Z, where generated time starts.
const START_MS: u64 = 1_767_225_600_000;

const SERVICES: [&str; 8] = [
    "order-service",
    "gateway",
    "inventory",
    "payment-worker",
    "user-profile",
    "search-indexer",
    "notification",
    "scheduler",
];
const LEVELS: [&str; 8] = ["INFO", "INFO", "INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR"];
const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "PUT", "DELETE"];
const STATUSES: [&str; 8] = ["200", "200", "200", "200", "204", "304", "404", "502"];
const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/126.0.0.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
    "kube-probe/1.29",
    "Prometheus/2.53.0",
    "python-requests/2.32.3",
];
const RESOURCES: [&str; 8] =
    ["orders", "hosts", "users", "items", "invoices", "sessions", "reports", "metrics"];
const MESSAGES: [&str; 8] = [
    "request completed",
    "cache miss, loading from primary store",
    "retrying upstream call after connection reset by peer",
    "message published to topic order-events",
    "slow query detected on table inventory_stock",
    "token refreshed for session",
    "batch flushed to object storage",
    "consumer group rebalanced, partitions assigned",
];
const FRAMES: [&str; 8] = [
    "at com.acme.orders.OrderService.place(OrderService.java:212)",
    "at com.acme.orders.OrderController.create(OrderController.java:87)",
    "at com.acme.inventory.StockRepository.reserve(StockRepository.java:141)",
    "at org.springframework.aop.framework.CglibAopProxy.invoke(CglibAopProxy.java:386)",
    "at org.springframework.web.servlet.FrameworkServlet.doPost(FrameworkServlet.java:909)",
    "at com.zaxxer.hikari.pool.HikariPool.getConnection(HikariPool.java:197)",
    "at java.base/java.net.SocketInputStream.read(SocketInputStream.java:186)",
    "at java.base/java.lang.Thread.run(Thread.java:840)",
];
const EXCEPTIONS: [&str; 4] = [
    "java.net.SocketTimeoutException: Read timed out",
    "java.sql.SQLTransientConnectionException: pool exhausted",
    "com.acme.inventory.OutOfStockException: sku unavailable",
    "java.lang.IllegalStateException: order already settled",
];

/// The generator. See the module's head for what it promises.
#[derive(Clone, Debug)]
pub struct LogGen {
    random: u64,
    now_us: u64,
    /// "2026-01-01T00:00:00" of the current second, renewed when the second changes.
    second: u64,
    stamp: [u8; 19],
    /// Rises by a small random step, as ids from a sequence do.
    next_id: u64,
    hosts: Vec<String>,
    users: Vec<String>,
    paths: Vec<String>,
}

impl LogGen {
    /// A generator whose lines depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let mut generator = Self {
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            now_us: START_MS * 1000,
            second: u64::MAX,
            stamp: [0; 19],
            next_id: 0,
            hosts: Vec::new(),
            users: Vec::new(),
            paths: Vec::new(),
        };
        generator.next_id = 10_000_000 + generator.below(80_000_000);
        for _ in 0..HOSTS {
            let (zone, host) = (generator.below(4), generator.below(200));
            generator.hosts.push(format!("10.{}.{zone}.{host}", 20 + zone));
        }
        for _ in 0..USERS {
            let (name, number) = (generator.pick(&RESOURCES), generator.below(100_000));
            generator.users.push(format!("u{number:05}@{name}.example.com"));
        }
        for _ in 0..PATHS {
            let (one, two) = (generator.pick(&RESOURCES), generator.pick(&RESOURCES));
            let (version, number) = (1 + generator.below(3), generator.below(5000));
            generator.paths.push(format!("/api/v{version}/{one}/{number}/{two}"));
        }
        generator
    }

    /// Appends one line to `out`, without a line break.
    pub fn line(&mut self, out: &mut Vec<u8>) {
        let step = self.next();
        self.now_us += 20 + (step & 0x3ff);
        self.next_id += 1 + (step >> 10 & 7);
        match step >> 16 & 15 {
            0..=5 => self.access(out),
            6..=9 => self.service(out),
            10..=12 => self.json(out),
            13..=14 => self.key_value(out),
            _ => self.exception(out),
        }
    }

    /// A web server's access log.
    fn access(&mut self, out: &mut Vec<u8>) {
        let random = self.next();
        push_fragment(out, &self.hosts, random);
        out.extend_from_slice(b" - - [");
        self.push_time(out);
        out.extend_from_slice(b"] \"");
        push_static(out, &METHODS, random >> 8);
        out.push(b' ');
        push_fragment(out, &self.paths, random >> 16);
        out.extend_from_slice(b" HTTP/1.1\" ");
        push_static(out, &STATUSES, random >> 24);
        out.push(b' ');
        push_number(out, 200 + (random >> 32 & 0x3fff));
        out.extend_from_slice(b" \"-\" \"");
        push_static(out, &AGENTS, random >> 48);
        out.extend_from_slice(b"\" rt=0.");
        push_padded(out, random >> 52 & 0x1ff, 3);
        out.extend_from_slice(b" req=");
        self.push_trace(out);
    }

    /// A service in the layout of Java's loggers.
    fn service(&mut self, out: &mut Vec<u8>) {
        let random = self.next();
        self.push_time(out);
        out.push(b' ');
        push_static(out, &LEVELS, random);
        out.extend_from_slice(b" [http-nio-8080-exec-");
        push_number(out, 1 + (random >> 4 & 31));
        out.extend_from_slice(b"] com.acme.");
        push_static(out, &SERVICES, random >> 12);
        out.extend_from_slice(b" - ");
        push_static(out, &MESSAGES, random >> 16);
        out.extend_from_slice(b" id=");
        push_number(out, self.next_id);
        out.extend_from_slice(b" user=");
        push_fragment(out, &self.users, random >> 24);
        out.extend_from_slice(b" path=");
        push_fragment(out, &self.paths, random >> 32);
        out.extend_from_slice(b" latency_ms=");
        push_number(out, random >> 40 & 0x1ff);
        out.extend_from_slice(b" trace=");
        self.push_trace(out);
    }

    /// A service that logs JSON.
    fn json(&mut self, out: &mut Vec<u8>) {
        let random = self.next();
        out.extend_from_slice(b"{\"ts\":\"");
        self.push_time(out);
        out.extend_from_slice(b"\",\"level\":\"");
        push_static(out, &LEVELS, random);
        out.extend_from_slice(b"\",\"service\":\"");
        push_static(out, &SERVICES, random >> 8);
        out.extend_from_slice(b"\",\"host\":\"");
        push_fragment(out, &self.hosts, random >> 16);
        out.extend_from_slice(b"\",\"msg\":\"");
        push_static(out, &MESSAGES, random >> 24);
        out.extend_from_slice(b"\",\"user\":\"");
        push_fragment(out, &self.users, random >> 32);
        out.extend_from_slice(b"\",\"order_id\":");
        push_number(out, self.next_id);
        out.extend_from_slice(b",\"duration_us\":");
        push_number(out, 100 + (random >> 40 & 0xffff));
        out.extend_from_slice(b",\"trace_id\":\"");
        self.push_trace(out);
        out.extend_from_slice(b"\"}");
    }

    /// An infrastructure component that logs keys and values.
    fn key_value(&mut self, out: &mut Vec<u8>) {
        let random = self.next();
        out.extend_from_slice(b"ts=");
        self.push_time(out);
        out.extend_from_slice(b" level=info caller=compact.go:");
        push_number(out, 400 + (random & 127));
        out.extend_from_slice(b" component=");
        push_static(out, &SERVICES, random >> 8);
        out.extend_from_slice(b" msg=\"");
        push_static(out, &MESSAGES, random >> 16);
        out.extend_from_slice(b"\" peer=");
        push_fragment(out, &self.hosts, random >> 24);
        out.push(b':');
        push_number(out, 30_000 + (random >> 32 & 0x7fff));
        out.extend_from_slice(b" bytes=");
        push_number(out, random >> 40 & 0xf_ffff);
        out.extend_from_slice(b" block=");
        self.push_hex(out, 12);
    }

    /// An exception with its frames, flattened into one record.
    fn exception(&mut self, out: &mut Vec<u8>) {
        let random = self.next();
        self.push_time(out);
        out.extend_from_slice(b" ERROR ");
        push_static(out, &SERVICES, random);
        out.push(b' ');
        push_static(out, &EXCEPTIONS, random >> 8);
        out.extend_from_slice(b" id=");
        push_number(out, self.next_id);
        out.extend_from_slice(b" trace=");
        self.push_hex(out, 16);
        for frame in 0..2 + (random >> 16 & 1) {
            out.extend_from_slice(b" | ");
            push_static(out, &FRAMES, random >> (20 + 8 * frame));
        }
    }

    fn push_time(&mut self, out: &mut Vec<u8>) {
        let second = self.now_us / 1_000_000;
        if second != self.second {
            self.second = second;
            self.stamp = format_second(second);
        }
        out.extend_from_slice(&self.stamp);
        out.push(b'.');
        push_padded(out, self.now_us % 1_000_000, 6);
        out.push(b'Z');
    }

    /// A trace id as W3C's Trace Context has it: 32 hexadecimal digits.
    fn push_trace(&mut self, out: &mut Vec<u8>) {
        self.push_hex(out, 16);
        self.push_hex(out, 16);
    }

    fn push_hex(&mut self, out: &mut Vec<u8>, digits: usize) {
        let mut text = [0u8; 16];
        let mut random = self.next();
        for digit in &mut text[..digits] {
            *digit = b"0123456789abcdef"[(random & 15) as usize];
            random >>= 4;
        }
        out.extend_from_slice(&text[..digits]);
    }

    /// splitmix64: one multiplication chain per draw and no bad seeds.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick(&mut self, pool: &[&'static str]) -> &'static str {
        pool[self.below(pool.len() as u64) as usize]
    }
}

fn push_static(out: &mut Vec<u8>, pool: &[&str], random: u64) {
    out.extend_from_slice(pool[(random & 0xff) as usize % pool.len()].as_bytes());
}

fn push_fragment(out: &mut Vec<u8>, pool: &[String], random: u64) {
    out.extend_from_slice(pool[(random & 0xff) as usize % pool.len()].as_bytes());
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn push_padded(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; 6];
    for digit in digits[..width].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits[..width]);
}

/// "YYYY-MM-DDTHH:MM:SS" of a second since 1970 (days to civil date as in Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms").
fn format_second(second: u64) -> [u8; 19] {
    let days = second / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let of_day = second % 86_400;
    let mut text = Vec::with_capacity(19);
    push_padded(&mut text, year, 4);
    for (separator, number) in [
        (b'-', month),
        (b'-', day),
        (b'T', of_day / 3600),
        (b':', of_day / 60 % 60),
        (b':', of_day % 60),
    ] {
        text.push(separator);
        push_padded(&mut text, number, 2);
    }
    text.try_into().expect("4 digits and 5 times a separator with 2 digits are 19 bytes")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn lines(seed: u64, count: usize) -> Vec<Vec<u8>> {
        let mut generator = LogGen::new(seed);
        let line = |_| {
            let mut out = Vec::new();
            generator.line(&mut out);
            out
        };
        (0..count).map(line).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_lines_and_another_seed_others() {
        assert_eq!(lines(7, 500), lines(7, 500));
        assert_ne!(lines(7, 500), lines(8, 500));
    }

    #[test]
    fn lines_are_printable_distinct_and_about_220_bytes() {
        let lines = lines(1, 50_000);
        let bytes: usize = lines.iter().map(Vec::len).sum();
        let mean = bytes as f64 / lines.len() as f64;
        println!("mean length {mean:.1}");
        assert!((210.0..230.0).contains(&mean), "mean length {mean}");
        assert!(lines.iter().flatten().all(|byte| (b' '..=b'~').contains(byte)));
        assert_eq!(lines.iter().collect::<HashSet<_>>().len(), lines.len());
    }

    #[test]
    fn zstd_level_1_packs_256_kib_blocks_four_to_five_times() {
        for seed in 0..8 {
            let mut generator = LogGen::new(seed);
            let (mut raw, mut packed) = (0, 0);
            for _ in 0..16 {
                let mut block = Vec::new();
                while block.len() < 256 * 1024 {
                    generator.line(&mut block);
                    block.push(b'\n');
                }
                raw += block.len();
                packed += zstd::bulk::compress(&block, 1).unwrap().len();
            }
            let ratio = raw as f64 / packed as f64;
            println!("seed {seed}: ratio {ratio:.2}");
            assert!((4.0..=5.0).contains(&ratio), "seed {seed}: ratio {ratio:.2}");
        }
    }

    #[test]
    fn seconds_become_dates() {
        assert_eq!(&format_second(START_MS / 1000), b"2026-01-01T00:00:00");
        assert_eq!(&format_second(1_709_251_199), b"2024-02-29T23:59:59");
    }

    /// Rates belong to benchmarks; this only keeps an accident (a format! per line) out.
    #[test]
    fn a_core_makes_lines_faster_than_anything_consumes_them() {
        let mut generator = LogGen::new(3);
        let mut out = Vec::with_capacity(300_000);
        let started = std::time::Instant::now();
        let mut count = 0;
        while started.elapsed().as_millis() < 100 {
            out.clear();
            for _ in 0..1000 {
                generator.line(&mut out);
            }
            count += 1000;
        }
        let rate = count as f64 / started.elapsed().as_secs_f64();
        println!("{:.2} M lines/s", rate / 1e6);
        assert!(rate > 200_000.0, "{rate} lines/s");
    }
}
