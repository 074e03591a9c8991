// The coffee chain in Node: identical shops, one menu, one ledger in the store at REDIS_URL.
// geode starts it with PORT, REDIS_URL and GEODE_REGION; any Redis server will do as well.
'use strict';
const { randomBytes } = require('node:crypto');
const { readFileSync } = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { createClient } = require('redis');

const shop = process.env.GEODE_REGION || 'nowhere';
const page = readFileSync(path.join(__dirname, '../../crates/demo/page.html'));
const menu = [['espresso', 'Espresso', 250], ['flat-white', 'Flat white', 380], ['cappuccino', 'Cappuccino', 360],
  ['filter', 'Filter coffee', 290], ['cold-brew', 'Cold brew', 420], ['mocha', 'Mocha', 440]]
  .map(([id, name, price_cents]) => ({ id, name, price_cents }));
const cartKeptSeconds = 24 * 60 * 60;

// Without a queue, a request fails at once while the store is away; the client comes back by itself.
const store = createClient({
  url: process.env.REDIS_URL || 'redis://127.0.0.1:6379',
  disableOfflineQueue: true,
  commandOptions: { timeout: 2000 },
  socket: { connectTimeout: 1000, reconnectStrategy: tries => Math.min(50 * 2 ** tries, 1000) },
});
store.on('error', error => console.error(`store: ${error.message || error.code}`));
store.connect().catch(() => {});

class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
}
const refuse = (status, message) => { throw new Refusal(status, message); };
const drinkOf = id => menu.find(drink => drink.id === id)?.id
  ?? refuse(400, `there is no such drink: choose one of ${menu.map(drink => drink.id).join(', ')}`);
const numbers = counts => Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, Number(count)]));

async function bodyOf(request, example) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length <= 4096) chunks.push(chunk);
    if (length > 65536) break;   // ends the connection
  }
  if (length > 4096) refuse(413, 'the body is longer than 4096 bytes');
  try {
    const body = JSON.parse(Buffer.concat(chunks).toString());
    if (Object.keys(example).every(key => typeof body[key] === typeof example[key])) return body;
  } catch { /* answered below */ }
  refuse(400, `the body must be JSON such as ${JSON.stringify(example)}`);
}
function within(field, text, most) {
  const length = [...text.trim()].length;
  return length >= 1 && length <= most ? text.trim() : refuse(400, `${field} must have 1 to ${most} characters`);
}
const cartOf = request => /(?:^|;)\s*cart=([0-9a-f]{32})\s*(?:;|$)/.exec(request.headers.cookie || '')?.[1];

// One function per method and path; each returns a status, a body, and sometimes headers.
const routes = {
  'GET /healthz': async () => [200, { status: 'ok' }],
  'GET /api/menu': async () => {
    const likes = numbers(await store.hGetAll('coffee:likes'));
    return [200, { drinks: menu.map(drink => ({ ...drink, likes: likes[drink.id] ?? 0 })) }];
  },
  'GET /api/orders': async () => {
    const [total, shops, drinks] = await store.multi()
      .get('coffee:sold').hGetAll('coffee:sold:shops').hGetAll('coffee:sold:drinks').exec();
    return [200, { total: Number(total ?? 0), shops: numbers(shops), drinks: numbers(drinks) }];
  },
  'POST /api/orders': async request => {
    const drink = drinkOf((await bodyOf(request, { drink: 'espresso' })).drink);
    const [total] = await store.multi()
      .incr('coffee:sold').hIncrBy('coffee:sold:shops', shop, 1).hIncrBy('coffee:sold:drinks', drink, 1).exec();
    return [201, { drink, total }];
  },
  'POST /api/likes': async (request, id) => {
    const drink = drinkOf(id);
    return [200, { drink, likes: await store.hIncrBy('coffee:likes', drink, 1) }];
  },
  'GET /api/guestbook': async () => {
    const entries = await store.lRange('coffee:guestbook', 0, 19);
    return [200, { entries: entries.map(entry => JSON.parse(entry)) }];
  },
  'POST /api/guestbook': async request => {
    const { name, text } = await bodyOf(request, { name: 'Ada', text: 'Good coffee' });
    const entry = { name: within('name', name, 40), text: within('text', text, 280), shop, at_ms: Date.now() };
    await store.lPush('coffee:guestbook', JSON.stringify(entry));
    await store.lTrim('coffee:guestbook', 0, 99);
    return [201, { entry }];
  },
  'GET /api/cart': async request => {
    const id = cartOf(request);
    return [200, { items: id ? numbers(await store.hGetAll(`coffee:cart:${id}`)) : {} }];
  },
  'POST /api/cart': async request => {
    const { drink, quantity = 1 } = await bodyOf(request, { drink: 'espresso' });
    drinkOf(drink);
    if (!Number.isInteger(quantity) || quantity < 1 || quantity > 20) refuse(400, 'quantity must be 1 to 20');
    const id = cartOf(request) ?? randomBytes(16).toString('hex');
    const [, , items] = await store.multi().hIncrBy(`coffee:cart:${id}`, drink, quantity)
      .expire(`coffee:cart:${id}`, cartKeptSeconds).hGetAll(`coffee:cart:${id}`).exec();
    const cookie = `cart=${id}; Path=/; Max-Age=${cartKeptSeconds}; HttpOnly; SameSite=Lax`;
    return [201, { items: numbers(items) }, { 'Set-Cookie': cookie }];
  },
  'DELETE /api/cart': async request => {
    if (cartOf(request)) await store.del(`coffee:cart:${cartOf(request)}`);
    return [200, { items: {} }];
  },
};

async function answer(request) {
  const [, where, argument] = /^(\/(?:api\/)?[^/?]*)(?:\/([^/?]*))?/.exec(request.url) ?? [];
  if (request.method === 'GET' && request.url === '/') return [200, page, { 'Content-Type': 'text/html; charset=utf-8' }];
  const route = routes[`${request.method} ${where}`];
  if (!route || (argument !== undefined) !== (where === '/api/likes')) {
    return [404, { error: 'nothing is here: see / for the shop and /api/menu for what it sells' }];
  }
  try {
    const [status, body, headers] = await route(request, argument);
    return [status, { shop, ...body }, headers];
  } catch (error) {
    if (error instanceof Refusal) return [error.status, { error: error.message }];
    console.error(`${request.method} ${where}: ${error.message}`);
    const message = 'the store does not answer: check that it is running and that REDIS_URL is right, then try again';
    return [503, { error: message }, { 'Retry-After': '1' }];
  }
}

const server = http.createServer(async (request, response) => {
  const started = performance.now();
  const [status, body, headers] = await answer(request);
  const bytes = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': bytes.length,
    'Cache-Control': 'no-store',
    'Server-Timing': `shop;dur=${(performance.now() - started).toFixed(3)}`,
    ...(status === 413 && { Connection: 'close' }),
    ...headers,
  }).end(bytes);
});
server.listen(Number(process.env.PORT || 3000), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));   // finishes what has begun
  server.closeIdleConnections();
});
