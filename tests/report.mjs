// Drives the page of `explore report` in a headless Chromium, as a reader would: keys, pointer,
// links. tests/test_report.sh calls it:
//
//   node tests/report.mjs CHROMIUM report.html FOLDER [PICTURES]
//
// FOLDER holds what other subcommands said: tokens.jsonl (explore tokens --top 1), domains.jsonl,
// expert.jsonl (of EXPERT), and title: the page has to show the same. The browser's files go there
// too. PICTURES: where to put some.
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const EXPERT = 'G1 E1304';
const hostile = '</script><img src=x onerror=window.hit=1>';
const [chromium, file, folder, pictures] = process.argv.slice(2);
const page = pathToFileURL(resolve(file)).href;
const jsonl = name => readFileSync(join(folder, name), 'utf8').split('\n').filter(x => x)
  .map(x => JSON.parse(x));
let passed = 0, failed = 0;

function check(what, ok, detail = '') {
  if (ok) passed++;
  else failed++;
  if (!ok) console.log(`report.mjs: FAILED: ${what} ${detail}`);
}
const nap = ms => new Promise(done => setTimeout(done, ms));
const near = (shown, number, part) => Math.abs(shown - number) <= part * Math.abs(number);

/* ---- the browser, over a pipe: messages end with a NUL ---- */

const browser = spawn(chromium, ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
  '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--remote-debugging-pipe', `--user-data-dir=${resolve(folder, 'profile')}`, 'about:blank'],
  { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'], detached: true,
    env: { ...process.env, HOME: resolve(folder) } });
const waiting = new Map(), requests = [], faults = [];
let number = 0, rest = '', session;

function heard(message) {
  const { id, method, params } = message;
  if (id) {
    waiting.get(id)(message);
    waiting.delete(id);
  } else if (method === 'Network.requestWillBeSent') requests.push(params.request.url);
  else if (method === 'Network.webSocketCreated') requests.push(params.url);
  else if (method === 'Runtime.exceptionThrown')
    faults.push(params.exceptionDetails.exception?.description || params.exceptionDetails.text);
  else if (method === 'Log.entryAdded' && params.entry.level !== 'info')
    faults.push(params.entry.text);
  else if (method === 'Runtime.consoleAPICalled' && params.type === 'error')
    faults.push(JSON.stringify(params.args));
}
browser.stdio[4].setEncoding('utf8').on('data', text => {
  const messages = (rest + text).split('\0');
  rest = messages.pop();
  for (const message of messages) heard(JSON.parse(message));
});
function send(method, params = {}) {
  return new Promise((done, fail) => {
    waiting.set(++number, m => m.error ? fail(new Error(method + ': ' + m.error.message))
      : done(m.result));
    const message = { id: number, method, params, sessionId: session };
    browser.stdio[3].write(JSON.stringify(message) + '\0');
  });
}
function end(status) {
  console.log(`report.mjs: ${passed} passed, ${failed} failed`);
  browser.once('exit', () => process.exit(status));
  send('Browser.close').catch(() => {});
  setTimeout(() => process.kill(-browser.pid, 'SIGKILL'), 3000); /* all of its processes */
}
function broken(why) {
  failed++;
  console.log(`report.mjs: FAILED: ${why}`);
  end(1);
}
browser.once('error', error => { console.log(String(error)); process.exit(1); });
setTimeout(() => broken('not done after 120 s'), 120000).unref();

/* ---- what a reader does ---- */

async function js(expression) {
  const r = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
  if (r.exceptionDetails)
    throw new Error(`${expression}: ${r.exceptionDetails.exception?.description}`);
  return r.result.value;
}
/* Whether it becomes true within some seconds. */
async function until(expression) {
  for (let k = 0; k < 200; k++, await nap(50)) if (await js(`!!(${expression})`)) return true;
  return false;
}
async function open(hash) {
  await send('Page.navigate', { url: 'about:blank' });
  await send('Page.navigate', { url: page + hash });
  return until("document.readyState === 'complete' && document.querySelector('#main > *')");
}
const text = selector => js(`document.querySelector(${JSON.stringify(selector)})?.textContent`);
const texts = selector =>
  js(`[...document.querySelectorAll(${JSON.stringify(selector)})].map(e => e.textContent)`);
async function point(x, y) {
  await send('Input.dispatchMouseEvent', { type: 'mouseMoved', x, y });
}
async function click(x, y) {
  await point(x, y);
  for (const type of ['mousePressed', 'mouseReleased'])
    await send('Input.dispatchMouseEvent', { type, x, y, button: 'left', clickCount: 1 });
}
/* The middle of an element, or of a part of it (0 to 1), after scrolling there. */
const middle = (selector, n = 0, x = 0.5, y = 0.5) => js(`(() => {
  const e = document.querySelectorAll(${JSON.stringify(selector)})[${n}];
  e.scrollIntoView({block: 'center'});
  const b = e.getClientRects()[0];
  return [b.left + b.width * ${x}, b.top + b.height * ${y}];
})()`);
async function clickOn(selector, n) { await click(...await middle(selector, n)); }
async function press(key) {
  const say = key === 'Enter' ? '\r' : key.length === 1 ? key : undefined;
  const keyCode = { Enter: 13, ArrowDown: 40, ArrowRight: 39, Escape: 27 }[key];
  for (const type of ['keyDown', 'keyUp'])
    await send('Input.dispatchKeyEvent', { type, key, text: type === 'keyDown' ? say : undefined,
      windowsVirtualKeyCode: keyCode });
}
/* Types into the search box, which "/" goes to. */
async function search(words) {
  await js('document.activeElement.blur()');
  await press('/');
  await send('Input.insertText', { text: words });
}
async function choose(id, value) {
  await js(`(() => { const e = document.getElementById('${id}'); e.value = '${value}';
    e.dispatchEvent(new Event('change', {bubbles: true})); })()`);
}
async function picture(name) {
  if (!pictures) return;
  const { data } = await send('Page.captureScreenshot', { format: 'png' });
  writeFileSync(join(pictures, name + '.png'), Buffer.from(data, 'base64'));
}
async function look(width, height, scheme) {
  await send('Emulation.setDeviceMetricsOverride',
    { width, height, deviceScaleFactor: 1, mobile: width < 600 });
  await send('Emulation.setEmulatedMedia',
    { features: [{ name: 'prefers-color-scheme', value: scheme }] });
}

/* ---- tests ---- */

const heading = "document.querySelector('h2')?.textContent";
const digits = s => parseFloat(s.replaceAll(',', ''));

async function testOpen() {
  const title = readFileSync(join(folder, 'title'), 'utf8').trim();
  check('the page opens from a disk', await open(''));
  check('the title is text', await text('h1') === title, await text('h1'));
  check('nothing was injected', await js('document.images.length === 0 && window.hit === undefined'
    + " && document.scripts.length === 2 && document.querySelectorAll('iframe').length === 0"));
  check('a map comes first', await js("document.querySelector('#cells') !== null"));
}

async function testSearch() {
  await search('price');
  check('a word is found', await until("document.querySelectorAll('#results li').length > 0"));
  check('the first result has it among its words', (await text('#results li .chips'))
    .includes('price'), await text('#results li'));
  await picture('search');
  await search('20,24');
  const names = (await texts('#results .line b')).join();
  check('i,j is found in each group', names.startsWith('G1 E1304,G2 E1304'), names);
  await search('g2 e77');
  check('an id is found', (await text('#results b')) === 'G2 E77' &&
    (await js("document.querySelectorAll('#results li').length")) === 1);
  await search('cooking');
  check('a label is found', (await text('#results li')).includes('cooking'));
  await choose('group', 1);
  check('results of one group', (await texts('#results .line b')).every(x => /^G2/.test(x)));
  await choose('group', -1);
  await choose('order', 'density');
  const density = (await texts('#results .right')).map(parseFloat);
  check('sorted by density', density.length > 1 &&
    density.every((x, k) => !k || x <= density[k - 1]), density.join());
  await choose('order', 'relevance');
  await search('qqzzxx');
  check('what is nowhere', /^No expert/.test(await text('#count')));
  await search(EXPERT);
  await press('ArrowDown');
  check('the arrow goes to the results', await js("document.activeElement.matches('#results a')"));
  await press('Enter');
  check('Enter opens a card', await until(`${heading} === '${EXPERT}'`));
}

/* The card of EXPERT against `explore expert`. */
async function testCard() {
  const [want] = jsonl('expert.jsonl');
  const tiles = Object.fromEntries(await js(`[...document.querySelectorAll('.tile')].map(
    t => [t.children[0].textContent, [...t.children].slice(1).map(c => c.textContent)])`));
  check('active tokens', digits(tiles.Density[1]) === want.active, tiles.Density.join());
  check('density', near(digits(tiles.Density[0]), 100 * want.active / want.tokens, 0.01));
  check('maximum', near(digits(tiles.Maximum[0]), want.top[0].score, 0.006));
  check('lift', near(digits(tiles.Lift[0]), want.lift, 0.01), `${tiles.Lift} ${want.lift}`);
  check('half-experts', near(digits(tiles['Half i=20'][0]),
    100 * want.halves[0].active / want.tokens, 0.01) && near(digits(tiles['Half j=24'][0]),
    100 * want.halves[1].active / want.tokens, 0.01));
  check('correlation', near(digits(tiles['Pearson r'][0]), want.r_score, 0.01));
  const bars = await js(`[...document.querySelectorAll('.bars a')].map(
    a => [a.children[0].textContent, a.children[2].textContent])`);
  const labels = new Map(want.labels.map(x => [x.label, x.mean]));
  check('means of all labels', bars.length === labels.size &&
    bars.every(([label, x]) => near(parseFloat(x), labels.get(label), 0.01)), bars.join());
  const rows = await js(`[...document.querySelectorAll('.kwic')[0].children].map(e => {
    const [before, hit, score] = ['before', 'hit', 'score'].map(c => e.querySelector('.' + c));
    return [e.title, before.textContent, hit.textContent, score.textContent,
      getComputedStyle(hit).backgroundColor]; })`);
  const seen = s => s.replaceAll('\n', '\u21b5');
  check('as many top tokens', rows.length === want.top.length, `${rows.length}`);
  check('top tokens, their scores and contexts', rows.every(([, before, hit, score], k) =>
    hit === seen(want.top[k].text) && near(parseFloat(score), want.top[k].score, 0.006) &&
    before.endsWith(seen(want.top[k].before.slice(-8)))), JSON.stringify(rows[0]));
  check('a number on hover', /^score [0-9.]+ .*token [0-9]+ of/.test(rows[0][0]), rows[0][0]);
  const weight = color => parseFloat(/\/ ([0-9.]+)\)$/.exec(color)?.[1] ?? 1);
  check('colour says how strong', weight(rows[0][4]) > weight(rows.at(-1)[4]) ||
    want.top[0].score === want.top.at(-1).score, rows[0][4]);
  await picture('card');
  await js('scrollTo(0, 750)');
  await picture('card-tokens');
}

async function testLinks() {
  await clickOn('.near a', 0);
  check('a neighbour opens', await until(`${heading} !== '${EXPERT}'`));
  const there = await text('h2');
  await js('history.back()');
  check('back', await until(`${heading} === '${EXPERT}'`));
  await js('history.forward()');
  check('forward', await until(`${heading} === '${there}'`));
  await open('#g2e77');
  check('a permalink opens its card', await text('h2') === 'G2 E77', await text('h2'));
  await open('#g9e1');
  check('a link to nowhere shows the map', await js("document.querySelector('#cells') !== null"));
}

async function testMap() {
  const N = await js('N'), place = n => (n + 0.5) / N;
  await open('#map');
  await clickOn('.switch button', 1);
  check('the other group', (await text('.switch [aria-pressed=true]')) === 'G2');
  await point(...await middle('#cells', 0, place(24), place(20)));
  check('the map tells what is under the pointer',
    await until("document.querySelector('.readout h3').textContent === 'G2 E1304'") && (await text('.readout'))
      .includes('i=20, j=24'), await text('.readout'));
  check('and its half-experts',
    /row i=20[0-9.]+.*column j=24[0-9.]+/.test(await text('.readout dl')));
  await picture('map');
  await click(...await middle('#cells', 0, place(24), place(20)));
  check('a click opens the card', await until("location.hash === '#g2e1304'") &&
    await until(`${heading} === 'G2 E1304'`) && (await text('.head')).includes('i=20, j=24'),
    await js('location.hash'));
  await js('history.back()');
  await until("document.querySelector('#cells') !== null");
  await js("document.querySelector('#cells').focus()");
  await press('ArrowRight');
  await press('ArrowDown');
  await press('Enter');
  check('keys move on the map', await until(`location.hash === '#g2e${21 * N + 25}'`),
    await js('location.hash'));
  await open('#map');
  for (const mode of await js('modes().map(m => m[0])')) {
    await choose('mode', mode);
    const colors = await js(`(() => { const c = document.querySelector('#cells'), s = new Set();
      const d = c.getContext('2d').getImageData(0, 0, N, N).data;
      for (let k = 0; k < d.length; k += 4) s.add(d.slice(k, k + 3).join());
      return s.size; })()`);
    check(`map of ${mode}`, colors > 2, `${colors} colours`);
  }
  await choose('mode', 'density');
  check('the densest cell is the darkest', await js(`(() => {
    const d = document.querySelector('#cells').getContext('2d').getImageData(0, 0, N, N).data;
    const sum = k => d[4 * k] + d[4 * k + 1] + d[4 * k + 2], v = density(map.group);
    const top = v.indexOf(Math.max(...v));
    return [...v.keys()].every(k => sum(k) >= sum(top)); })()`));
  await picture('map-density');
}

async function testDomains() {
  const want = jsonl('domains.jsonl');
  await open('#domains');
  const rows = await js(`[...document.querySelectorAll('tbody tr')].map(
    r => [...r.children].map(c => c.textContent))`);
  check('domain experts, as explore domains counts them', rows.length > 1 && rows.every(r =>
    [1, 2].every(g => digits(r[1 + g]) ===
      want.filter(x => x.label === r[0] && x.group === g).length)), rows.join(' | '));
  check('there are some', want.length > 0);
  check('a hostile label is text', rows.some(r => r[0] === hostile));
  await clickOn('tbody a', rows.findIndex(r => digits(r[4]) > 0));
  check('a label lists its experts', await until("document.querySelectorAll('table')[1]"));
  await picture('domains');
  const first = await text('table:last-of-type tbody tr:last-child a');
  await js("[...document.querySelectorAll('table')].at(-1).querySelector('tbody a').click()");
  check('which are links', await until("document.querySelector('.tiles') !== null"), first);
}

async function testText() {
  const want = jsonl('tokens.jsonl').slice(1); /* without BOS */
  await open('#text');
  const shown = await texts('.flow .token');
  check('all tokens of the text', shown.length === want.length, `${shown.length} ${want.length}`);
  check('the text is text', shown.join('').includes(hostile));
  for (const t of [1, 4, want.length - 1]) {
    await point(...await middle('.flow .token', t));
    await until("!document.querySelector('#tip').hidden");
    const lines = await js(`[...document.querySelectorAll('#tip ol')].map(o => [
      o.querySelector('a').textContent, o.querySelector('.score').textContent])`);
    check(`strongest experts of token ${t}, as explore tokens says`, want[t].groups.every((g, k) =>
      lines[k][0] === `G${g.group} E${g.experts[0].id}` &&
      near(parseFloat(lines[k][1]), g.experts[0].score, 0.006)), lines.join());
    check(`active experts of token ${t}`, (await texts('#tip h4 small'))
      .map(parseFloat).join() === want[t].groups.map(g => g.active).join());
  }
  await point(...await middle('.flow .token', 4));
  await picture('text');
  await point(2, 2);
  check('it goes with the pointer', await until("document.querySelector('#tip').hidden"));
  await clickOn('.flow .token', 4);
  await point(2, 2);
  check('a click keeps it', !await js("document.querySelector('#tip').hidden"));
  const expert = want[4].groups[0].experts[0];
  await clickOn('#tip .score', 0);
  check('a score colours the text', await until(`location.hash === '#text/g1e${expert.id}'`) &&
    await until("document.querySelectorAll('.flow .hit').length > 0"));
  await picture('text-expert');
  await clickOn('.soft a', 0);
  check('and leads to the card', await until(`location.hash === '#g1e${expert.id}'`));
}

async function testLooks() {
  const back = () => js('rgb(getComputedStyle(document.body).backgroundColor)');
  const light = await back();
  await look(1280, 900, 'dark');
  const darkBack = await back();
  check('dark where the system is dark', light[0] > 200 && darkBack[0] < 60, darkBack.join());
  for (const view of ['map', EXPERT.toLowerCase().replace(' ', ''), 'text']) {
    await open('#' + view);
    await picture('dark-' + view);
  }
  await look(390, 844, 'light');
  for (const view of ['map', EXPERT.toLowerCase().replace(' ', ''), 'domains', 'text', 'about']) {
    await open('#' + view);
    const width = await js('document.documentElement.scrollWidth');
    check(`${view} fits a phone`, width <= 390, `${width}`);
    await picture('phone-' + view);
  }
}

async function testQuiet() {
  const other = requests.filter(url => !url.startsWith(page) && url !== 'about:blank');
  check('no request but for the file itself', requests.length > 0 && other.length === 0,
    other.join());
  check('no errors in the console', faults.length === 0, faults.join(' | '));
  check('nothing was injected by then', await js('window.hit === undefined'));
  check('the policy of the page forbids requests', await js(`new Promise(done => {
    document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));
    setTimeout(() => done('none'), 2000);
    new Image().src = 'http://127.0.0.1:9/';
  })`) === 'img-src');
}

try {
  const target = (await send('Target.getTargets')).targetInfos.find(t => t.type === 'page');
  const attached = { targetId: target.targetId, flatten: true };
  session = (await send('Target.attachToTarget', attached)).sessionId;
  for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await send(domain + '.enable');
  await look(1280, 900, 'light');
  for (const test of [testOpen, testSearch, testCard, testLinks, testMap, testDomains, testText,
                      testLooks, testQuiet]) await test();
  end(failed ? 1 : 0);
} catch (error) {
  broken(String(error.stack || error));
}
