//! Posts each alert to an URL. A receiver that hangs, is down or asks for patience is tried again, with pauses that double
//! and are not the same on all nodes; what it refuses is not. Certificates of public authorities are built in: nothing is
//! read from a disk while the disk is stuck.

use super::retry::{self, Next};
use super::{Again, Alert, Delivery};
use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use ureq::{
    Agent,
    http::Uri,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// How long one attempt may take, from looking up the name to the answer.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The URL, `https` or `http`.
    pub url: String,
    /// Sent as `Authorization: Bearer`, over `https` only.
    pub token: Option<String>,
    /// Authorities to trust instead of those that are built in, as PEM.
    pub authorities: Option<Vec<u8>>,
    /// How long one attempt may take.
    pub limit: Duration,
    /// Names this run: a receiver knows by it, and by an alert's `seq`, what came twice.
    pub run: String,
}

/// What posts.
pub struct Webhook {
    settings: Settings,
    agent: Agent,
    /// See [`retry::pause`]; tests cannot wait that long.
    pause: fn(u32, Option<Duration>, u64) -> Duration,
    give_up: Duration,
    /// Where to, without what may be a secret: many receivers know the sender by the path.
    place: String,
}

impl Webhook {
    /// Checks what can be checked without asking anybody.
    pub fn new(settings: Settings) -> Result<Webhook, String> {
        let url: Uri = settings.url.parse().map_err(|error| format!("webhook: {error}"))?;
        let scheme = url.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
        let scheme = scheme.ok_or("webhook: neither an http nor an https URL")?;
        let host = url.host().filter(|host| !host.is_empty()).ok_or("webhook: the URL names no host")?;
        let place = match url.port() {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        };
        if settings.token.is_some() && scheme != "https" {
            return Err(format!("{place}: a token is sent over https only"));
        }
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &settings.authorities {
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates(pem)?)));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // What was told to one address is for nobody else.
            .max_redirects(0)
            .timeout_global(Some(settings.limit))
            .max_idle_connections(1)
            .user_agent(concat!("plegscope/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Webhook { settings, agent, pause: retry::pause, give_up: retry::GIVE_UP, place })
    }

    fn attempt(&self, alert: &Alert) -> (Next, String) {
        let mut request = self
            .agent
            .post(&self.settings.url)
            .content_type("application/json")
            .header("Idempotency-Key", format!("{}-{}", self.settings.run, alert.seq));
        if let Some(token) = &self.settings.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        match request.send(&alert.json[..]) {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
                (retry::next(status, after), format!("it answered {}", answer.status()))
            }
            Err(error) => (Next::Again { after: None }, error.to_string()),
        }
    }
}

/// The certificates of a PEM file, at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>, String> {
    let mut found = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err("there is no certificate in it".into()) } else { Ok(found) }
}

impl Delivery for Webhook {
    fn deliver(&mut self, alert: &Alert, again: Again<'_>) -> Result<(), String> {
        let begin = Instant::now();
        let mut attempts = 0;
        loop {
            let (next, how) = self.attempt(alert);
            attempts += 1;
            match next {
                Next::Done => return Ok(()),
                Next::Refused => return Err(format!("{}: {how}", self.place)),
                Next::Again { after } => {
                    let pause = (self.pause)(attempts, after, RandomState::new().build_hasher().finish());
                    if begin.elapsed() + pause > self.give_up {
                        return Err(format!("{}: {how}, given up after {attempts} attempts", self.place));
                    }
                    again(&format!("{}: {how}", self.place));
                    thread::sleep(pause);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Event;
    use crate::sinks::deliver::{Count, Queue, tests::alert};
    use std::{
        cell::RefCell,
        io::{BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        sync::mpsc::{Receiver, channel},
    };

    /// Reads one request; its headers in lower case, and its body.
    fn request(stream: &mut impl Read) -> (String, Vec<u8>) {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return (head, Vec::new());
            }
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                reader.read_exact(&mut body).unwrap();
            }
            None => {
                // Chunks: each its length in hex, and its bytes.
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let length = usize::from_str_radix(line.trim(), 16).unwrap();
                    let mut chunk = vec![0; length + 2];
                    reader.read_exact(&mut chunk).unwrap();
                    if length == 0 {
                        break;
                    }
                    body.extend_from_slice(&chunk[..length]);
                }
            }
        }
        (head, body)
    }

    /// What a receiver does with one connection; `None` to say nothing for as long as the test lasts.
    type Answer = Option<&'static str>;

    const OK: Answer = Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    const BUSY: Answer =
        Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");

    /// A receiver on the loopback that answers one connection after the other.
    fn receiver(answers: Vec<Answer>) -> (String, Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let (tell, told) = channel();
        thread::spawn(move || {
            let mut silent: Vec<TcpStream> = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let seen = request(&mut stream);
                match answer {
                    Some(text) => stream.write_all(text.as_bytes()).unwrap(),
                    None => silent.push(stream),
                }
                let _ = tell.send(seen);
            }
        });
        (url, told)
    }

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            token: None,
            authorities: None,
            limit: Duration::from_secs(20),
            run: "run".to_owned(),
        }
    }

    fn quick(settings: Settings) -> Webhook {
        let mut webhook = Webhook::new(settings).unwrap();
        webhook.pause = |_, _, _| Duration::from_millis(5);
        webhook.give_up = Duration::from_secs(60);
        webhook
    }

    #[test]
    fn an_alert_is_posted_as_it_is() {
        let (url, told) = receiver(vec![OK]);
        let one = alert(3, Event::Crossed, "a");
        assert_eq!(quick(settings(&url)).deliver(&one, &|_| {}), Ok(()));
        let (head, body) = told.recv().unwrap();
        assert_eq!(body, one.json);
        for line in ["post /alerts http/1.1", "content-type: application/json", "idempotency-key: run-3"] {
            assert!(head.contains(line), "{line} in {head}");
        }
        assert!(!head.contains("authorization"), "{head}");
    }

    #[test]
    fn a_receiver_that_is_busy_is_tried_again_and_one_that_refuses_is_not() {
        let (url, told) = receiver(vec![BUSY, BUSY, OK]);
        let failed = RefCell::new(Vec::new());
        let again = |why: &str| failed.borrow_mut().push(why.to_owned());
        assert_eq!(quick(settings(&url)).deliver(&alert(1, Event::Crossed, "a"), &again), Ok(()));
        assert_eq!(told.iter().take(3).count(), 3);
        let failed = failed.into_inner();
        assert!(
            failed.len() == 2 && failed.iter().all(|why| why.contains("503")),
            "each is told: {failed:?}"
        );

        let refuses = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let elsewhere = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        for (answer, status) in [(refuses, "401"), (elsewhere, "302")] {
            let (url, told) = receiver(vec![Some(answer), OK]);
            let error = quick(settings(&url)).deliver(&alert(1, Event::Crossed, "a"), &|_| {}).unwrap_err();
            let place = url.strip_suffix("/alerts").unwrap();
            assert!(error.contains(status) && error.contains(place) && !error.contains("alerts"), "{error}");
            told.recv().unwrap();
            assert_eq!(told.try_iter().count(), 0, "asked once");
        }
    }

    #[test]
    fn a_receiver_that_hangs_costs_an_attempt_and_holds_nobody_up() {
        let (url, told) = receiver(vec![None, OK, OK]);
        let mut settings = settings(&url);
        settings.limit = Duration::from_secs(2);
        let queue = Queue::start("webhook", vec![Box::new(quick(settings))]).unwrap();
        let begin = Instant::now();
        queue.hand(&Arc::new(alert(1, Event::Crossed, "a")));
        queue.hand(&Arc::new(alert(2, Event::Ended, "a")));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        let counts = queue.counts();
        assert!(queue.finish(Duration::from_secs(60)));
        let bodies: Vec<String> =
            told.iter().take(3).map(|(_, body)| String::from_utf8(body).unwrap()).collect();
        let Count { delivered, again, error, .. } = counts();
        assert!((delivered, again) == (2, 1) && error.contains("timeout"), "{error}");
        let seq = |n: usize| bodies[n].contains("\"seq\":1");
        assert!(seq(0) && seq(1) && !seq(2), "in their order: {bodies:?}");
    }

    #[test]
    fn one_that_is_down_is_given_up_after_a_while() {
        // A port that nobody listens at any more.
        let url = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}/", listener.local_addr().unwrap())
        };
        let mut webhook = quick(settings(&url));
        webhook.give_up = Duration::from_millis(100);
        let error = webhook.deliver(&alert(1, Event::Crossed, "a"), &|_| {}).unwrap_err();
        assert!(error.contains("given up after"), "{error}");
    }

    #[test]
    fn what_cannot_be_right_is_refused_at_once() {
        let refused = |settings| Webhook::new(settings).err().unwrap_or_default();
        assert!(refused(settings("ftp://x/")).contains("neither"));
        assert!(!refused(settings("not an url")).is_empty());
        let plain = Settings { token: Some("secret".into()), ..settings("http://x/") };
        assert!(refused(plain).contains("https only"));
        let empty = Settings { authorities: Some(b"nothing".to_vec()), ..settings("https://x/") };
        assert!(refused(empty).contains("no certificate"));
    }

    /// A receiver with a certificate of its own.
    fn secure() -> (String, String, Receiver<(String, Vec<u8>)>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let (tell, told) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                let seen = request(&mut stream);
                if seen.0.is_empty() {
                    continue; // It did not trust us.
                }
                let _ = stream.write_all(OK.unwrap_or_default().as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
                if tell.send(seen).is_err() {
                    return;
                }
            }
        });
        (url, made.cert.pem(), told)
    }

    #[test]
    fn only_who_is_trusted_gets_the_alert_and_the_token() {
        let (url, pem, told) = secure();
        let with = |authorities: Option<&str>| Settings {
            token: Some("secret".into()),
            authorities: authorities.map(|pem| pem.as_bytes().to_vec()),
            ..settings(&url)
        };
        let one = alert(1, Event::NotReady, "a");
        let mut stranger = quick(with(None));
        stranger.give_up = Duration::ZERO;
        let error = stranger.deliver(&one, &|_| {}).unwrap_err();
        assert!(error.to_lowercase().contains("cert"), "{error}");
        assert_eq!(quick(with(Some(&pem))).deliver(&one, &|_| {}), Ok(()));
        let (head, body) = told.recv().unwrap();
        assert!(head.contains("authorization: bearer secret"), "{head}");
        assert_eq!(body, one.json);
        assert!(told.try_recv().is_err(), "the stranger got nothing");
    }
}
