// What the page asks for in a dialog.

const $ = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;

/** Whether the user agrees to something that cannot be taken back; Escape means no. */
export async function confirmed(question: string, yes: string): Promise<boolean> {
  const dialog = $<HTMLDialogElement>("confirm-dialog");
  if (dialog.open) return false;
  $("confirm-text").textContent = question;
  $("confirm-yes").textContent = yes;
  return (await answered(dialog)) === "yes";
}

/** The server's token, as the user types it. */
export async function typedToken(): Promise<string> {
  const field = $<HTMLInputElement>("token");
  await answered($<HTMLDialogElement>("token-dialog"));
  const token = field.value;
  field.value = "";
  return token;
}

async function answered(dialog: HTMLDialogElement): Promise<string> {
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue;
}
