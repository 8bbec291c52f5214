//! The page in a real browser: it needs nothing else, says what was seen and runs nothing of it, and nothing sticks out.

use crate::make::{capture, folder, header, lines, report_of, scenario, written};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tracer::capture::Line;
use tracer::event::Body;
use tracer::report::{Comparison, Report};
use tracer::sinks::report::{Told, html};

/// Names that anybody may choose who can start a container.
const HOSTILE: [&str; 4] = [
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=\"document.title='owned'\">",
    "</svg></style><style>body{display:none}</style>",
    "&lt;b&gt;'`{{x}}\u{202e}\u{1b}[2J",
];

/// Where the browser is; the reason why nothing is tested where there is none.
fn browser() -> Result<PathBuf, &'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    all.into_iter()
        .find(|program| program.is_file())
        .ok_or("no chromium: apt-get install chromium (cargo xtask test does it when it is root)")
}

/// Runs the browser; what it wrote to its standard output.
fn run(browser: &Path, folder: &Path, arguments: &[String]) -> String {
    let profile = folder.join("profile");
    let _ = std::fs::remove_dir_all(&profile);
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    // What a page does wrong, or may not do, is told on its console.
    let console: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let _ = std::fs::remove_dir_all(&profile);
    String::from_utf8(output.stdout).unwrap()
}

/// What a script sees that looks at the page from within.
const LOOK: &str = r#"<script>
const box = (e) => e.getBBox();
const apart = (a, b) => a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
const wrong = [];
for (const chain of document.querySelectorAll('svg.chain')) {
  const width = chain.viewBox.baseVal.width, height = chain.viewBox.baseVal.height;
  const links = [...chain.querySelectorAll('rect.link')].map(box);
  for (const text of chain.querySelectorAll('text')) {
    const b = box(text), what = text.textContent, of = text.classList[0];
    if (b.x < 0 || b.x + b.width > width || b.y + b.height > height) wrong.push('out of the picture: ' + what);
    if (of == 'what' || of == 'who' || of == 'took') {
      const around = links.find((l) => b.y >= l.y && b.y + b.height <= l.y + l.height && b.x >= l.x && b.x <= l.x + l.width);
      if (!around) wrong.push('in no box: ' + what);
      else if (b.x + b.width > around.x + around.width) wrong.push('wider than its box: ' + what);
    }
    if (of == 'way-name') for (const l of links) if (!apart(b, l)) wrong.push('over a box: ' + what);
  }
  for (const a of links) for (const b of links) if (a !== b && !apart(a, b)) wrong.push('boxes overlap');
}
for (const line of document.querySelectorAll('svg.timeline')) {
  const width = line.viewBox.baseVal.width;
  for (const text of line.querySelectorAll('text')) {
    const b = box(text);
    if (b.x < -1 || b.x + b.width > width + 1) wrong.push('out of the timeline: ' + text.textContent);
  }
}
const luminance = (c) => {
  const [r, g, b] = c.match(/[\d.]+/g).map((n) => n / 255).map((n) => n <= .03928 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
const card = getComputedStyle(document.querySelector('section')).backgroundColor;
const style = (of) => getComputedStyle(document.querySelector(of));
document.body.dataset.look = JSON.stringify({
  wrong,
  over: document.documentElement.scrollWidth - window.innerWidth,
  loaded: performance.getEntriesByType('resource').length,
  scripts: document.querySelectorAll('script').length,
  elements: document.querySelectorAll('img,iframe,object,embed,link,form,base').length,
  inline: document.querySelectorAll('[style],[onerror],[onload],[onclick]').length,
  title: document.title,
  text: document.body.innerText + [...document.querySelectorAll('svg text, svg title, details')].map((e) => e.textContent).join('\n'),
  chains: document.querySelectorAll('svg.chain rect.link').length,
  contrast: Math.min(contrast(style('body').color, card), contrast(style('.when').color, card), contrast(style('.note, .when').color, card)),
  background: style('body').backgroundColor,
});
</script>"#;

/// Looks at a page from within.
fn look(browser: &Path, folder: &Path, page: &str, size: (u32, u32), dark: bool) -> Value {
    // The page's own policy allows no script, which is tested by the page as it is.
    let begin = page.find("<meta http-equiv=\"Content-Security-Policy\"").unwrap();
    let end = begin + page[begin..].find('\n').unwrap();
    let open = format!("{}{}", &page[..begin], &page[end..]).replace("</body>", &format!("{LOOK}</body>"));
    let file = folder.join("look.html");
    std::fs::write(&file, open).unwrap();
    let scheme = if dark { 0 } else { 1 };
    let dom = run(
        browser,
        folder,
        &[
            format!("--window-size={},{}", size.0, size.1),
            format!("--blink-settings=preferredColorScheme={scheme}"),
            "--dump-dom".into(),
            format!("file://{}", file.display()),
        ],
    );
    let json = dom.split("data-look=\"").nth(1).expect("the script has run").split('"').next().unwrap();
    let json = json.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&json).unwrap()
}

/// A picture of a page; how many bytes it has.
fn picture(browser: &Path, folder: &Path, name: &str, size: (u32, u32), dark: bool) -> u64 {
    let png = folder.join(format!("{name}-{}x{}{}.png", size.0, size.1, if dark { "-dark" } else { "" }));
    run(
        browser,
        folder,
        &[
            format!("--window-size={},{}", size.0, size.1),
            format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }),
            format!("--screenshot={}", png.display()),
            format!("file://{}", folder.join(format!("{name}.html")).display()),
        ],
    );
    std::fs::metadata(&png).unwrap().len()
}

fn page(folder: &Path, name: &str, report: &Report, against: Option<&Comparison>) -> String {
    let page = html(Told { report, against });
    std::fs::write(folder.join(format!("{name}.html")), &page).unwrap();
    page
}

/// A capture in which every name that a workload chooses is hostile, and as long as it may be.
fn hostile() -> Vec<u8> {
    let mut all = lines(&scenario("full-chain-with-kubelet"));
    for (n, line) in all.iter_mut().enumerate() {
        let Line::Event(event) = line else { continue };
        let name = HOSTILE[n % HOSTILE.len()];
        match &mut event.body {
            Body::Process(p) => p.comm = name.into(),
            Body::Container(c) => {
                (c.namespace, c.pod, c.name) =
                    (Some(HOSTILE[0].into()), Some(HOSTILE[1].into()), Some(HOSTILE[2].into()));
            }
            Body::Device(d) => d.name = format!("/dev/{}", HOSTILE[3]),
            Body::InFlight(op) | Body::Ended(op, _) => {
                op.path = op.path.take().map(|path| format!("{path}{}", HOSTILE[0].repeat(20)));
            }
            _ => {}
        }
    }
    let header = tracer::capture::Header { host: HOSTILE[1].into(), boot_id: HOSTILE[0].into(), ..header() };
    written(header, &all)
}

#[test]
fn the_page_is_whole_readable_and_harmless_in_a_browser() {
    let browser = match browser() {
        Ok(browser) => browser,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return;
        }
    };
    let folder = folder("browser");
    let chain = report_of(&capture(&scenario("full-chain-with-kubelet")));
    let late = report_of(&capture(&scenario("late-exit")));
    let healthy = report_of(&capture(&scenario("healthy")));
    let fixed = Comparison::of(&chain, &healthy);
    let pages = [
        ("chain", page(&folder, "chain", &chain, None), 9),
        ("late", page(&folder, "late", &late, None), 4),
        ("fixed", page(&folder, "fixed", &healthy, Some(&fixed)), 0),
        ("hostile", page(&folder, "hostile", &report_of(&hostile()), None), 9),
    ];
    for (name, page, links) in &pages {
        for (size, dark) in [((1280, 900), false), ((1280, 900), true), ((390, 800), false)] {
            let seen = look(&browser, &folder, page, size, dark);
            let at = format!("{name} at {size:?}, dark {dark}: {seen}");
            assert_eq!(seen["wrong"], Value::from(Vec::<Value>::new()), "{at}");
            assert!(seen["over"].as_i64().unwrap() <= 0, "{at}");
            assert_eq!(seen["loaded"], 0, "{at}");
            assert_eq!(
                (&seen["scripts"], &seen["elements"], &seen["inline"]),
                (&1.into(), &0.into(), &0.into()),
                "{at}"
            );
            assert!(seen["title"].as_str().unwrap().starts_with("plegscope report: "), "{at}");
            assert!(seen["contrast"].as_f64().unwrap() >= 4.5, "{at}");
            assert!(seen["chains"].as_u64().unwrap() >= *links, "{at}");
            let background = seen["background"].as_str().unwrap();
            assert_eq!(background == "rgb(20, 23, 27)", dark, "{at}");
            if *name == "hostile" {
                // Shown as it is: what a browser makes of the page has the very characters.
                let text: String = seen["text"].as_str().unwrap().split_whitespace().collect();
                for name in &HOSTILE[..2] {
                    let name: String = name.split_whitespace().collect();
                    assert!(text.contains(&name), "{name} is not shown in {text}");
                }
            }
        }
        // The page as it is, with its policy: what it may not do would be on the console.
        let bytes = picture(&browser, &folder, name, (1280, 3600), false);
        assert!(bytes > 30_000, "an empty picture of {name}: {bytes} bytes");
        picture(&browser, &folder, name, (1280, 3600), true);
    }
    let pdf = folder.join("chain.pdf");
    run(
        &browser,
        &folder,
        &[
            format!("--print-to-pdf={}", pdf.display()),
            "--no-pdf-header-footer".into(),
            format!("file://{}", folder.join("chain.html").display()),
        ],
    );
    assert!(std::fs::metadata(pdf).unwrap().len() > 20_000);
}
