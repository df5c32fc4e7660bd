// Which images a choice of labels leaves, how many more each value would give, and in which order. No page in here.

/** A choice: for each label the set of states that are wanted; an empty one wants all. State 0 is unknown. */
export const emptyChoice = (labels) => labels.map(() => new Set());

export const isEmpty = (choice) => choice.every((states) => states.size === 0);

/**
 * The rows of a group that fit a choice, and for each label the rows by state that fit the choices of all other labels.
 * One pass: a row that fails one label alone counts for that label.
 */
export function fitting(group, choice) {
  const active = choice.flatMap((states, label) => (states.size ? [label] : []));
  const wanted = active.map((label) => Uint8Array.from({ length: 256 }, (_, state) => (choice[label].has(state) ? 1 : 0)));
  const columns = active.map((label) => group.states[label]);
  const counts = choice.map(() => new Uint32Array(256));
  const rows = new Uint32Array(group.count);
  const fits = new Uint8Array(group.count);
  let found = 0;
  for (let row = 0; row < group.count; row++) {
    let failed = 0;
    let which = -1;
    for (let at = 0; at < active.length && failed < 2; at++) {
      if (!wanted[at][columns[at][row]]) {
        failed++;
        which = at;
      }
    }
    if (failed === 0) {
      fits[row] = 1;
      rows[found++] = row;
    } else if (failed === 1) {
      counts[active[which]][columns[which][row]]++;
    }
  }
  for (let label = 0; label < choice.length; label++) {
    const column = group.states[label];
    const count = counts[label];
    for (let at = 0; at < found; at++) count[column[rows[at]]]++;
  }
  return { rows: rows.slice(0, found), fits, counts };
}

/** Rows in an order: "index", "bright", "dark", or the number of a label, unknown last. Equal ones by index. */
export function ordered(group, rows, order) {
  if (order === "index") return rows;
  const column = order === "bright" || order === "dark" ? group.brightness : group.states[Number(order)];
  const rank = (value) => {
    if (order === "bright") return 255 - value;
    if (order === "dark") return value;
    return value === 0 ? 0 : 256 - value; // the highest grade first
  };
  const starts = new Uint32Array(258);
  const ranks = Uint16Array.from({ length: 256 }, (_, value) => (order === "bright" || order === "dark" || value ? rank(value) : 256));
  for (const row of rows) starts[ranks[column[row]] + 1]++;
  for (let at = 1; at < starts.length; at++) starts[at] += starts[at - 1];
  const result = new Uint32Array(rows.length);
  for (const row of rows) result[starts[ranks[column[row]]]++] = row;
  return result;
}
