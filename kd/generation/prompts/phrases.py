"""Templates of composed prompts, by language and kind: {task} is what a tool does, {values} are its arguments."""

from __future__ import annotations

ASK = {
    "en": (
        "Please {task}. Use {values}.",
        "I need this: {task}. Here is what I know: {values}.",
        "Can you {task}? My details are {values}.",
        "{values}. With that, {task}.",
        "For a report I have to {task}; take {values}, and tell me the outcome in one sentence.",
        "Quick one: {task} ({values}).",
    ),
    "de": (
        "Bitte erledige das: {task}. Angaben: {values}.",
        "Ich brauche Folgendes: {task}. Dazu weiß ich {values}.",
        "Kannst du das für mich tun: {task}? Es geht um {values}.",
        "{values}. Damit bitte: {task}.",
        "Für einen Bericht: {task}, mit {values}. Antworte in einem Satz.",
    ),
    "fr": (
        "Merci de faire ceci : {task}. Données : {values}.",
        "J'ai besoin de ceci : {task}. Voici ce que je sais : {values}.",
        "Peux-tu faire cela pour moi : {task} ? Il s'agit de {values}.",
        "{values}. Avec cela, fais ceci : {task}.",
        "Pour un rapport : {task}, avec {values}. Réponds en une phrase.",
    ),
    "es": (
        "Por favor, haz esto: {task}. Datos: {values}.",
        "Necesito lo siguiente: {task}. Lo que sé: {values}.",
        "¿Puedes hacer esto por mí: {task}? Se trata de {values}.",
        "{values}. Con eso, haz esto: {task}.",
        "Para un informe: {task}, con {values}. Responde en una frase.",
    ),
}
"""Of one tool; those of two are joined by JOIN."""

JOIN = {
    "en": ("{one} And also: {two}", "Two things. First: {one} Second: {two}"),
    "de": ("{one} Und außerdem: {two}", "Zwei Dinge. Erstens: {one} Zweitens: {two}"),
    "fr": ("{one} Et aussi : {two}", "Deux choses. D'abord : {one} Ensuite : {two}"),
    "es": ("{one} Y además: {two}", "Dos cosas. Primero: {one} Segundo: {two}"),
}
GIVE = {"en": "It is {values}.", "de": "Es ist {values}.", "fr": "C'est {values}.", "es": "Es {values}."}
NOTHING = {
    "en": "no further details",
    "de": "keine weiteren Angaben",
    "fr": "pas d'autres détails",
    "es": "sin más datos",
}
TALK = {
    "en": (
        "Write about {number} words on {topic}, from your own knowledge.",
        "In your opinion, what makes {topic} beautiful? Use at most {number} words.",
        "Make up a story of {number} words that has {topic} in it.",
        "Explain {topic} to a child of {small}, without looking anything up, in {number} words.",
        "Give me {small} rhyming lines about {topic}, each shorter than {number} letters.",
    ),
    "de": (
        "Schreibe etwa {number} Wörter über {topic}, aus eigenem Wissen.",
        "Erfinde eine Geschichte von {number} Wörtern, in der {topic} vorkommt.",
        "Erkläre einem Kind von {small} Jahren {topic}, ohne nachzusehen, in {number} Wörtern.",
    ),
    "fr": (
        "Écris environ {number} mots sur {topic}, de mémoire.",
        "Invente une histoire de {number} mots où il y a {topic}.",
        "Explique {topic} à un enfant de {small} ans, sans rien chercher, en {number} mots.",
    ),
    "es": (
        "Escribe unas {number} palabras sobre {topic}, de memoria.",
        "Inventa una historia de {number} palabras en la que aparezca {topic}.",
        "Explica {topic} a un niño de {small} años, sin buscar nada, en {number} palabras.",
    ),
}
TOPICS = {
    "en": (
        "rain", "a lighthouse", "patience", "old bridges", "the colour green", "a broken clock", "winter mornings",
        "chess", "bread", "friendship", "the moon", "a quiet street", "mountains", "honesty", "a lost glove", "autumn",
        "trains", "silence", "an apple tree", "courage",
    ),
    "de": (
        "Regen", "einen Leuchtturm", "Geduld", "alte Brücken", "die Farbe Grün", "eine kaputte Uhr", "Schach", "Brot",
        "Freundschaft", "den Mond", "eine stille Straße", "Berge", "Mut", "Stille",
    ),
    "fr": (
        "la pluie", "un phare", "la patience", "les vieux ponts", "la couleur verte", "une horloge cassée",
        "les échecs", "le pain", "la lune", "une rue calme", "le courage", "le silence",
    ),
    "es": (
        "la lluvia", "un faro", "la paciencia", "los puentes viejos", "el color verde", "un reloj roto", "el ajedrez",
        "el pan", "la luna", "una calle tranquila", "el valor", "el silencio",
    ),
}  # fmt: skip
